"""Tensors in safetensors files, found without reading them, read and written one at a time.

Nothing is mapped: pages of a mapping count as memory of the process.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from truthgpt_services.errors import ModelError

DTYPES = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By their names in a file, and in the order in which the safetensors library writes tensors: each
begins at a multiple of its item size."""

_ORDER = list(DTYPES)
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8


class UnknownDtypeError(ModelError):
    """A file has tensors of a dtype that torch lacks."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a safetensors file.

    Attributes:
        file: where it is.
        begin: of its values in the file, in bytes.
        shape: its sizes.
        dtype: as it is stored.
    """

    file: Path
    begin: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """How many bytes its values take."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """Read it, onto the CPU.

        Raises:
            ModelError: the file cannot be read, or ends too early.
        """
        tensor = torch.empty(self.shape, dtype=self.dtype)
        if not tensor.numel():
            return tensor
        left = _bytes_of(tensor)
        try:
            with self.file.open("rb", buffering=0) as file:
                file.seek(self.begin)
                while left:
                    count = file.readinto(left)
                    if not count:
                        raise ModelError(f"{self.file} is damaged: it ends before its last tensor")
                    left = left[count:]
        except OSError as error:
            raise ModelError(f"{self.file} cannot be read: {error.strerror or error}") from error
        return tensor


def stored_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Find all tensors in safetensors files, by name.

    Raises:
        UnknownDtypeError: a tensor has a dtype that torch lacks.
        ModelError: a file is damaged or cannot be read.
    """
    stored: dict[str, StoredTensor] = {}
    for path in files:
        stored |= _tensors_of(path)
    return stored


def _tensors_of(path: Path) -> dict[str, StoredTensor]:
    try:
        # Checks the header and the size of the file, so that they can be relied on below.
        with safe_open(path, framework="pt"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except SafetensorError as error:
        raise ModelError(f"The weights in {path} are damaged: {error}") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    header.pop("__metadata__", None)
    unknown = {each["dtype"] for each in header.values()} - set(DTYPES)
    if unknown:
        raise UnknownDtypeError(f"{path} has tensors of {min(unknown)}, which torch does not have")
    return {
        name: StoredTensor(
            path,
            8 + length + each["data_offsets"][0],
            tuple(each["shape"]),
            DTYPES[each["dtype"]],
        )
        for name, each in header.items()
    }


class SafetensorsWriter:
    """A safetensors file that is written a tensor at a time, in any order.

    Used as a context manager. The file is byte for byte the one that the safetensors library
    writes of the same tensors, with the alignment that it has.

    Args:
        path: of the file.
        tensors: the dtype of each tensor that it will have and its shape, by name.
        alignment: bytes that the first tensor begins at a multiple of, and so do those that
            follow tensors of multiples of as many; itself a multiple of 8.

    Raises:
        ModelError: the format has no such dtype.
        OSError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
        *,
        alignment: int = _ALIGNMENT,
    ) -> None:
        unknown = {dtype for dtype, _ in tensors.values()} - set(_NAMES)
        if unknown:
            raise ModelError(f"A safetensors file cannot hold tensors of {min(map(str, unknown))}")
        named = {name: (_NAMES[dtype], dtype, shape) for name, (dtype, shape) in tensors.items()}
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._begins: dict[str, int] = {}
        size = 0
        for name in sorted(named, key=lambda each: (_ORDER.index(named[each][0]), each)):
            dtype_name, dtype, shape = named[name]
            self._begins[name] = size
            size += math.prod(shape) * dtype.itemsize
            offsets = [self._begins[name], size]
            header[name] = {"dtype": dtype_name, "shape": shape, "data_offsets": offsets}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % alignment)
        self._data = 8 + len(text)
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(self._data + size)

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor, which has the dtype and the shape that were announced.

        Raises:
            OSError: the disk is full, for one.
        """
        self._file.seek(self._data + self._begins[name])
        self._file.write(_bytes_of(tensor.detach().cpu().contiguous()))

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)
