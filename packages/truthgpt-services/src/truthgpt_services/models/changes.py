"""Whether a step changed a model: its tensors by bytes, dtype and shape, its modules by type."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from truthgpt_services.models import lazy_weights
from truthgpt_services.models.recipe import is_saved

_PLAIN = (Tensor, nn.Parameter, nn.Buffer)

_Kind = tuple[str, torch.dtype, tuple[int, ...], torch.layout]


@dataclass(frozen=True, slots=True)
class _Content:
    kind: _Kind
    digest: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a model is made of.

    Attributes:
        tensors: parameters and buffers by name, tied ones under each of their names.
        modules: the classes of all modules, by name.
    """

    tensors: Mapping[str, _Content]
    modules: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a model differs from what it was.

    Attributes:
        changed: whether it does.
        note: what was compared and how much of it differs, as part of a sentence.
    """

    changed: bool
    note: str


def part_names(model: nn.Module) -> frozenset[str]:
    """Return the names of all modules, parameters and buffers, tied ones under each name."""
    return frozenset(
        name
        for named in (model.named_modules, model.named_parameters, model.named_buffers)
        for name, _ in named(remove_duplicate=False)
    )


def parts_in_memory(model: nn.Module) -> Parts:
    """Return what a model is made of now, with a checksum of each tensor: none is copied."""
    tensors = {
        name: _Content(content.kind, _always(content.digest()))
        for name, content in _contents(_named_tensors(model)).items()
    }
    return Parts(tensors, _classes(model))


def parts_on_disk(directory: Path, dtype: torch.dtype | None) -> Parts | None:
    """Return what the model of a transformers directory is made of, before it is loaded.

    A tensor is read when it is compared, so that what was replaced is not read at all.

    Args:
        directory: with config.json and safetensors.
        dtype: for its weights; None for the one they are stored in.

    Returns:
        None if it has to be loaded as a whole to know.

    Raises:
        ModelError: its configuration cannot be used, or a file is damaged.
    """
    if is_saved(directory):
        return None
    opened = lazy_weights.open_model(directory, dtype=dtype)
    if opened is None:
        return None
    stored = {
        name: _Content(_kind(empty), _read(read)) for name, empty, read in opened.stored_tensors()
    }
    buffers = (each for each in _named_tensors(opened.model) if each[0] not in stored)
    return Parts(stored | _contents(buffers), _classes(opened.model))


def compare(before: Parts, model: nn.Module) -> Comparison:
    """Compare a model with what it was.

    Args:
        before: what it was made of.
        model: the model as it is now.
    """
    after = _contents(_named_tensors(model))
    tensors = before.tensors.keys() | after.keys()
    odd = sum(not _is_same(before.tensors.get(name), after.get(name)) for name in tensors)
    classes = _classes(model)
    modules = before.modules.keys() | classes.keys()
    other = sum(before.modules.get(name) != classes.get(name) for name in modules)
    note = f"{odd:,} of {len(tensors):,} tensors and {other:,} of {len(modules):,} modules differ"
    return Comparison(changed=bool(odd or other), note=note)


def _is_same(one: _Content | None, other: _Content | None) -> bool:
    if one is None or other is None or one.kind != other.kind:
        return False
    return one.digest() == other.digest()


def _classes(model: nn.Module) -> dict[str, str]:
    return {
        name: f"{type(module).__module__}.{type(module).__qualname__}"
        for name, module in model.named_modules(remove_duplicate=False)
    }


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _contents(named: Iterable[tuple[str, Tensor]]) -> dict[str, _Content]:
    digests: dict[int, bytes] = {}

    def once(tensor: Tensor) -> bytes:
        if id(tensor) not in digests:
            digests[id(tensor)] = _digest(tensor)
        return digests[id(tensor)]

    # Bound to each tensor, which so stays alive and keeps its id.
    return {name: _Content(_kind(each), _bound(once, each)) for name, each in named}


def _bound(digest: Callable[[Tensor], bytes], tensor: Tensor) -> Callable[[], bytes]:
    return lambda: digest(tensor)


def _read(read: Callable[[], Tensor]) -> Callable[[], bytes]:
    return lambda: _digest(read())


def _always(digest: bytes) -> Callable[[], bytes]:
    return lambda: digest


def _kind(tensor: Tensor) -> _Kind:
    kind = "" if type(tensor) in _PLAIN else type(tensor).__qualname__
    return kind, tensor.dtype, tuple(tensor.shape), tensor.layout


def _digest(tensor: Tensor) -> bytes:
    found = hashlib.sha256()
    for plain in _plain(tensor.detach()):
        # As bytes: a NaN is not equal to itself, and NumPy does not know bfloat16.
        flat = plain.cpu().resolve_conj().resolve_neg().contiguous().view(-1)
        found.update(flat.view(torch.uint8).numpy().data)
    return found.digest()


def _plain(tensor: Any) -> Iterator[Tensor]:
    """Yield the ordinary tensors that one is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain(getattr(tensor, name))
    elif tensor.is_quantized:
        yield tensor.int_repr()
    elif not tensor.is_meta:
        yield tensor if tensor.layout is torch.strided else tensor.to_dense()
