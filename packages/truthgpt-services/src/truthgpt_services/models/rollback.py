"""Putting a model in memory back as it was before an optimization that failed."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig

from truthgpt_core.errors import in_one_line
from truthgpt_services.errors import ModelError

_CONTAINERS = (dict, OrderedDict, list, set)


class Rollback:
    """A copy of everything that a model is made of, to put it back.

    What is copied are the bytes of all tensors, and which modules, tensors, attributes, hooks
    and settings there are. The objects themselves are kept and put back, so that others who have
    a parameter of the model (an optimizer, a tied layer) still have the same one. That takes the
    memory of the weights once more, on their device, and weights that are replaced meanwhile
    are not freed until this is.

    Attributes that are objects of other kinds are put back as objects; what is inside them is
    not looked at, and neither is what is outside of the model.

    Args:
        model: a `torch.nn.Module`.

    Raises:
        ModelError: there is too little memory for the copy.
    """

    def __init__(self, model: nn.Module) -> None:
        self._seen: set[int] = set()
        self._objects: list[tuple[Any, type[Any]]] = []
        self._containers: list[tuple[Any, Any]] = []
        self._tensors: list[tuple[Tensor, Tensor, bool, Tensor | None]] = []
        self._storages: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        try:
            with torch.no_grad():
                self._keep(model)
        except (RuntimeError, MemoryError) as error:
            raise ModelError(
                f"The model cannot be copied, to put it back if this fails: {in_one_line(error)}",
                hint="With undo=False it is changed without a copy.",
            ) from error

    def restore(self) -> None:
        """Put the model back, bit for bit."""
        for storage, copied in self._storages.values():
            if storage.nbytes() != copied.nbytes():
                storage.resize_(copied.nbytes())
            storage.copy_(copied, non_blocking=False)
        for thing, kind in self._objects:
            if type(thing) is not kind:
                thing.__class__ = kind
        for container, before in self._containers:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(before)
        for tensor, before, requires_grad, gradient in self._tensors:
            if not _is_same_view(tensor, before):
                tensor.data = before
            if tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)
            if tensor.is_leaf:
                tensor.grad = gradient

    def _keep(self, thing: Any) -> None:
        if isinstance(thing, tuple):
            for each in thing:
                self._keep(each)
            return
        is_object = isinstance(thing, (nn.Module, PretrainedConfig, GenerationConfig))
        if not (is_object or isinstance(thing, Tensor) or type(thing) in _CONTAINERS):
            return
        if id(thing) in self._seen:
            return
        self._seen.add(id(thing))
        if isinstance(thing, Tensor):
            self._keep_tensor(thing)
        elif is_object:
            self._objects.append((thing, type(thing)))
            self._keep(vars(thing))
        else:
            self._containers.append((thing, copy.copy(thing)))
            for each in thing.values() if isinstance(thing, dict) else thing:
                self._keep(each)

    def _keep_tensor(self, tensor: Tensor) -> None:
        gradient = tensor.grad if tensor.is_leaf else None
        before = tensor.detach()
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:
            # A subclass that is made of other tensors, or a sparse tensor.
            before = before.clone()
        else:
            known = tensor.is_meta or storage.data_ptr() in self._storages
            if not known and storage.nbytes():
                self._storages[storage.data_ptr()] = storage, storage.clone()
        self._tensors.append((tensor, before, tensor.requires_grad, gradient))
        self._keep(gradient)


@contextmanager
def undone_if_it_fails(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Put a model back as it was if what is done meanwhile fails.

    Args:
        model: what may be changed.
        wanted: False to do nothing of the kind, and to copy nothing.

    Raises:
        ModelError: there is too little memory for the copy.
    """
    rollback = Rollback(model) if wanted else None
    try:
        yield
    except BaseException:
        if rollback is not None:
            rollback.restore()
        raise


def _is_same_view(one: Tensor, other: Tensor) -> bool:
    if (one.dtype, one.shape, one.device) != (other.dtype, other.shape, other.device):
        return False
    if type(one.data) is not Tensor or one.layout is not torch.strided:
        return False
    return (
        one.stride() == other.stride()
        and one.storage_offset() == other.storage_offset()
        and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    )
