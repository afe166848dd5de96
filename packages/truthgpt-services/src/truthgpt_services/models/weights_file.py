"""A weights file of a saved model: compared with what it should hold before any of it is used."""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from truthgpt_core.paths import open_regular
from truthgpt_services.errors import ModelError
from truthgpt_services.models.safetensors_files import DTYPES, StoredTensor, stored_tensors

_AGAIN = "Make the model again, or copy it again from where it came."

_Header = tuple[Any, tuple[int, ...]]


class Skeleton:
    """What a weights file should hold: the tensors of a model that is still to be filled.

    Made from the model as its configuration says, before the steps of a recipe put their
    modules in place; `of` then looks at it again.

    Args:
        model: without values.
        dtype: of the weights that no step changed.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self._dtype = dtype
        # Kept beside their ids, which other tensors would be given else.
        self._plain = list(_tensors(model).values())
        plan = getattr(model, "_get_dtype_plan", None)
        self._in_float32 = tuple(plan(dtype)) if plan is not None else ()

    def of(self, model: nn.Module) -> dict[str, tuple[set[torch.dtype], tuple[int, ...]]]:
        """Return the dtypes and the shape that each tensor of a model may have, by name.

        A module that a step put in place says both itself. A tensor that no step touched has
        the dtype of the model, or the one that transformers keeps it in.
        """
        plain = {id(each) for each in self._plain}
        wanted = {}
        for name, tensor in _tensors(model).items():
            dtypes = {tensor.dtype}
            if id(tensor) in plain and tensor.is_floating_point():
                dtypes.add(self._dtype)
                if any(part in name for part in self._in_float32):
                    dtypes.add(torch.float32)
            wanted[name] = dtypes, tuple(tensor.shape)
        return wanted

    def touched(self, model: nn.Module) -> set[str]:
        """Return the names of the tensors of a model that steps have put in place."""
        plain = {id(each) for each in self._plain}
        return {name for name, each in _tensors(model).items() if id(each) not in plain}


class WeightsFile:
    """A weights file whose checksum is computed in a thread, while the model is being built.

    Args:
        path: of the file.
        size: that it should have, in bytes.
        sha256: that it should have, in hexadecimal.
        shared: names of tensors that are stored under another name.

    Raises:
        ModelError: it is missing, truncated or not safetensors.
    """

    def __init__(self, path: Path, size: int, sha256: str, shared: Mapping[str, str]) -> None:
        found = path.stat().st_size if path.is_file() else 0
        if found != size:
            raise ModelError(
                f"{path} has {found} bytes and should have {size}: it is damaged", hint=_AGAIN
            )
        self._path = path
        self._sha256 = sha256
        self._shared = shared
        self._found: str | Exception = ""
        self._hashed: tuple[int, ...] = ()
        self._hashing = threading.Thread(target=self._hash, name="checksum", daemon=True)
        self._hashing.start()
        self._wanted: dict[str, tuple[set[torch.dtype], tuple[int, ...]]] = {}
        self._touched: set[str] = set()

    def compare(self, model: nn.Module, skeleton: Skeleton, hint: Callable[[], str]) -> None:
        """Compare the header of the file with the tensors of a model, which has no values yet.

        Args:
            model: with the modules of all steps in place.
            skeleton: of the model before that.
            hint: what to say beside an error: why the two may differ.

        Raises:
            ModelError: a tensor is missing, too many, or has another dtype or shape.
        """
        self._wanted, self._touched = skeleton.of(model), skeleton.touched(model)
        headers = self._headers()
        for name, stored in self._shared.items():
            if stored in headers:
                headers[name] = headers[stored]
        odd = sorted(headers.keys() ^ self._wanted.keys())
        if odd:
            raise ModelError(
                f"{self._path} does not fit its recipe: {len(odd)} tensors are missing or too "
                f"many, the first is {odd[0]}",
                hint=hint(),
            )
        wrong = [name for name, found in headers.items() if not _fits(found, self._wanted[name])]
        if wrong:
            (dtype, shape), (dtypes, expected) = headers[wrong[0]], self._wanted[wrong[0]]
            found, should = _written(dtype, shape=shape), _written(*dtypes, shape=expected)
            others = f"; {len(wrong) - 1} more are wrong" if len(wrong) > 1 else ""
            raise ModelError(
                f"{self._path} does not fit its recipe: {wrong[0]} is {found} and should be "
                f"{should}{others}",
                hint=hint(),
            )

    def fill(self, model: nn.Module) -> None:
        """Give a model that `compare` has looked at its values, each on the device it is on.

        Raises:
            ModelError: the file is not the one that was saved, or scales, norms or biases are not
                finite.
        """
        self._verify()
        places = {name: each.device for name, each in _tensors(model).items() if not each.is_meta}
        try:
            with safe_open(self._path, framework="pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise self._damaged(str(error)) from error
        for name, tensor in state.items():
            self._refuse_not_finite(name, tensor)
            if name in places:
                state[name] = tensor.to(places[name])
        state.update({name: state[stored] for name, stored in self._shared.items()})
        try:
            model.load_state_dict(state, assign=True)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ModelError(f"{self._path} does not fit its recipe: {reason}") from error
        tie = getattr(model, "tie_weights", None)
        if tie is not None:
            tie()

    def stored(self) -> dict[str, StoredTensor]:
        """Return where the tensors are that `compare` has looked at, shared ones by each name.

        Raises:
            ModelError: the file is not the one that was saved.
        """
        self._verify()
        stored = stored_tensors([self._path])
        return stored | {name: stored[other] for name, other in self._shared.items()}

    def read(self, name: str, where: StoredTensor) -> Tensor:
        """Read one tensor, onto the CPU.

        Raises:
            ModelError: it cannot be read, or is of scales, norms or biases that are not finite.
        """
        tensor = where.read()
        self._refuse_not_finite(name, tensor)
        return tensor

    def _refuse_not_finite(self, name: str, tensor: Tensor) -> None:
        if (tensor.dim() == 1 or name in self._touched) and not _is_finite(tensor):
            raise self._damaged(f"{name} has values that are not finite")

    def _headers(self) -> dict[str, _Header]:
        headers: dict[str, _Header] = {}
        try:
            with safe_open(self._path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - no dict
                    part = file.get_slice(name)
                    dtype = part.get_dtype()
                    headers[name] = DTYPES.get(dtype, dtype), tuple(part.get_shape())
        except (OSError, SafetensorError) as error:
            raise self._damaged(str(error)) from error
        return headers

    def _hash(self) -> None:
        try:
            # As one piece: after each, a thread waits for the one that is building the model.
            with (
                open_regular(self._path) as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            ):
                self._hashed = _identity(os.fstat(file.fileno()))
                self._found = hashlib.sha256(content).hexdigest()
        except (OSError, ValueError) as error:  # ValueError: it is empty
            self._found = error

    def _verify(self) -> None:
        self._hashing.join()
        if isinstance(self._found, Exception):
            raise self._damaged(str(self._found))
        if self._found != self._sha256:
            raise self._damaged("its SHA-256 is not the one that it was saved with")
        # What it is computed of was open at another time than what is mapped.
        if not self._path.is_file() or _identity(self._path.stat()) != self._hashed:
            raise self._damaged("it was changed while it was being loaded")

    def _damaged(self, why: str) -> ModelError:
        return ModelError(f"{self._path} is damaged: {why}", hint=_AGAIN)


def _identity(about: os.stat_result) -> tuple[int, ...]:
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.state_dict(keep_vars=True))


def _fits(found: _Header, wanted: tuple[set[torch.dtype], tuple[int, ...]]) -> bool:
    return found[0] in wanted[0] and found[1] == wanted[1]


def _written(*dtypes: Any, shape: tuple[int, ...]) -> str:
    names = " or ".join(sorted(str(each).removeprefix("torch.") for each in dtypes))
    return f"{names} {list(shape)}"


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.dtype.itemsize < 2 or not tensor.numel():
        return True
    # The ends of the range are NaN if anything is, and need no memory beside it.
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))
