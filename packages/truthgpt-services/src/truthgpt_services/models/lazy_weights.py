"""Models whose weights are read from disk a module at a time, when they are needed.

transformers itself builds the model, so that it is in every respect the one that it would
load. What it is given as the weights of the checkpoint are stand-ins: tensors of the right
shape that take the memory of one number. Where they end up in the model says which tensor of
the file belongs there. Parameters are on the meta device until they are filled in.

A checkpoint whose tensors transformers converts while it loads them (experts that it stacks,
for one) is not one for this: `open_model` says so, and it has to be loaded as ever.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.core_model_loading import WeightConverter

from truthgpt_core.optimization import OptimizationError
from truthgpt_services.models.loading import (
    load_config,
    load_generation_config,
    quiet,
    refuse_too_large,
)
from truthgpt_services.models.model_files import weight_files
from truthgpt_services.models.safetensors_files import (
    StoredTensor,
    UnknownDtypeError,
    stored_tensors,
)

logger = logging.getLogger(__name__)

_TRIM_EVERY = 2**24
"""Bytes that are read before memory that was freed is given back to the system."""

_PACKED = {torch.float8_e4m3fn, torch.float8_e5m2}
"""Of weights that are quantized, whatever their configuration says."""


class _UnfitError(Exception):
    """This checkpoint cannot be read a tensor at a time, and why."""


class LayerwiseModel:
    """A model with parameters on the meta device, and the checkpoint to fill them from.

    Args:
        model: the model; its tensors on the meta device are those in `stored`.
        stored: where each of them is on disk; a tied one is there once.
        device: where to put what is filled in.
    """

    def __init__(
        self, model: Any, stored: list[tuple[Tensor, StoredTensor]], device: torch.device
    ) -> None:
        self.model = model
        self._device = device
        self._read = 0
        # The tensors are kept beside their ids, which others would be given else.
        self._stored = {id(tensor): (tensor, where) for tensor, where in stored}
        self._places = _places(model)

    def fill(self, name: str) -> None:
        """Bring the parameters and buffers of one module into memory, without its children's.

        Args:
            name: of the module, in `model`; one that is in memory already stays as it is.

        Raises:
            ModelError: a file cannot be read.
        """
        for tensor in _own_tensors(self.model.get_submodule(name)).values():
            self._fill(tensor, self.model)

    def fill_rest(self, model: Any) -> None:
        """Fill whatever is still missing.

        Args:
            model: `model`, or what an optimization made of it.

        Raises:
            ModelError: a file cannot be read.
            OptimizationError: something is on the meta device that is not of the checkpoint.
        """
        self._places = _places(model)
        for name, module in model.named_modules():
            for key, tensor in _own_tensors(module).items():
                self._fill(tensor, model)
                if _own_tensors(module)[key].is_meta:
                    raise OptimizationError(f"{name}.{key} was left without values")
        _give_back_what_is_free()

    def stored_tensors(self) -> Iterator[tuple[str, Tensor, Callable[[], Tensor]]]:
        """Yield what is not filled in yet, tied tensors under each of their names.

        Yields:
            Its name in the model; a tensor on the meta device that has its dtype and shape;
            and what reads it from disk, onto the CPU.
        """
        for key, (tensor, where) in self._stored.items():
            for module, attribute in self._places[key]:
                name = f"{module}.{attribute}" if module else attribute
                yield name, tensor, partial(_read_as, where, tensor.dtype)

    def _fill(self, tensor: Tensor, model: Any) -> None:
        if id(tensor) not in self._stored:
            return
        _, where = self._stored.pop(id(tensor))
        self._read += where.nbytes
        if self._read >= _TRIM_EVERY:
            self._read = 0
            _give_back_what_is_free()
        filled = where.read().to(device=self._device, dtype=tensor.dtype)
        if isinstance(tensor, nn.Parameter):
            filled = nn.Parameter(filled, requires_grad=tensor.requires_grad)
        for name, key in self._places.pop(id(tensor)):
            module = model.get_submodule(name)
            # A module may have been replaced, but not where another one still has its tensor.
            if _own_tensors(module).get(key) is tensor:
                setattr(module, key, filled)


def open_model(
    directory: Path, *, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> LayerwiseModel | None:
    """Build a model of a transformers directory without reading its weights.

    Args:
        directory: with config.json and safetensors.
        dtype: for its weights; None for the one they are stored in.
        device: where to put what is filled in; the CPU if None.

    Returns:
        The model, in evaluation mode; None if its checkpoint has to be loaded as a whole.

    Raises:
        ModelError: its configuration cannot be used, or a file is damaged.
    """
    device = device or torch.device("cpu")
    config = load_config(directory)
    refuse_too_large(directory, config)
    generation = load_generation_config(directory)
    try:
        model, stored = _build(directory, config, _find_tensors(directory), dtype)
    except _UnfitError as reason:
        logger.info("%s is loaded as a whole: %s", directory, reason)
        return None
    if generation is not None:
        model.generation_config = generation
    for module in model.modules():
        for key, buffer in module.named_buffers(recurse=False):
            if not buffer.is_meta:
                setattr(module, key, buffer.to(device))
    return LayerwiseModel(model, stored, device)


def _build(
    directory: Path, config: Any, stored: dict[str, StoredTensor], dtype: torch.dtype | None
) -> tuple[Any, list[tuple[Tensor, StoredTensor]]]:
    if getattr(config, "quantization_config", None) is not None:
        raise _UnfitError("it is quantized")
    if config.sub_configs:
        raise _UnfitError("it is made of several models")
    floating = [each.dtype for each in stored.values() if each.dtype.is_floating_point]
    dtype = dtype or config.dtype or (floating[0] if floating else None)
    if not isinstance(dtype, torch.dtype):
        raise _UnfitError(f"its dtype is {dtype}")
    stand_ins = {name: _stand_in(each, dtype) for name, each in stored.items()}
    names = {each.untyped_storage().data_ptr(): name for name, each in stand_ins.items()}
    with quiet():
        try:
            with torch.device("meta"):
                kind = type(AutoModelForCausalLM.from_config(config, trust_remote_code=False))
            model: Any = kind.from_pretrained(
                None, config=config, state_dict=stand_ins, dtype=dtype
            )
        except Exception as error:  # loading it as a whole says what is wrong
            raise _UnfitError(f"it cannot be built without weights: {error}") from error
    model.config.name_or_path = model.name_or_path = str(directory)
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None or any(isinstance(each, WeightConverter) for each in conversions):
        raise _UnfitError("its tensors are converted while it is loaded")
    found: dict[int, tuple[Tensor, StoredTensor]] = {}
    persistent = model.state_dict(keep_vars=True)
    for module_name, module in model.named_modules():
        for key, tensor in _own_tensors(module).items():
            path = f"{module_name}.{key}" if module_name else key
            name = names.get(tensor.untyped_storage().data_ptr())
            if name is None and (path in persistent or isinstance(tensor, nn.Parameter)):
                raise _UnfitError(f"{path} is not a tensor of its checkpoint")
            if name is None:
                continue
            where = stored[name]
            if tuple(tensor.shape) != where.shape:
                raise _UnfitError(f"{path} has another shape in its checkpoint")
            if id(tensor) not in found:
                found[id(tensor)] = (_without_values(tensor), where)
            setattr(module, key, found[id(tensor)][0])
    return model, list(found.values())


def _find_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Find all tensors of a checkpoint, by name."""
    try:
        stored = stored_tensors(weight_files(directory))
    except UnknownDtypeError as error:
        raise _UnfitError(error.message) from error
    packed = {each.dtype for each in stored.values()} & _PACKED
    if packed:
        raise _UnfitError(f"it has tensors of {packed.pop()}")
    return stored


def _read_as(where: StoredTensor, dtype: torch.dtype) -> Tensor:
    return where.read().to(dtype=dtype)


def _stand_in(stored: StoredTensor, dtype: torch.dtype) -> Tensor:
    # In the dtype that it will have: another one would be converted, to a tensor of full size.
    wanted = dtype if stored.dtype.is_floating_point else stored.dtype
    return torch.zeros((), dtype=wanted).expand(stored.shape)


def _give_back_what_is_free() -> None:
    # glibc keeps what is freed between what stays: here the weights of layers between what was
    # made of them, which can come to more than the whole model.
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _without_values(tensor: Tensor) -> Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def _places(model: nn.Module) -> dict[int, list[tuple[str, str]]]:
    """Return where each tensor is, by its id, as names of modules and of attributes.

    Not as modules: one that was replaced would stay in memory, with its weights.
    """
    places: dict[int, list[tuple[str, str]]] = {}
    for name, module in model.named_modules():
        for key, tensor in _own_tensors(module).items():
            places.setdefault(id(tensor), []).append((name, key))
    return places


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    parameters = module.named_parameters(recurse=False, remove_duplicate=False)
    return dict(parameters) | dict(module.named_buffers(recurse=False, remove_duplicate=False))
