"""A model in memory put on disk as it is, for worker processes, which cannot see this one's."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from truthgpt_core.errors import in_one_line
from truthgpt_core.sources import ResolvedModel
from truthgpt_services.errors import ModelError, OutputError
from truthgpt_services.models.loading import load_model, load_tokenizer, quiet
from truthgpt_services.storage.atomic import explain_write_error

_SWAPPED = ("config", "hf_quantizer", "is_quantized")


@contextmanager
def snapshot_model(model: Any, tokenizer: Any) -> Iterator[ResolvedModel]:
    """Save a model into a temporary directory as transformers writes it, for a while.

    What was saved is loaded and compared, so that what others load is this model.

    Args:
        model: a causal language model of transformers; it stays as it is.
        tokenizer: to go with it; None for the one where the model says that it came from.

    Yields:
        Where it is. What else is put beside that directory is removed with it.

    Raises:
        ModelError: what would be loaded is not this model, or there is no tokenizer.
        OutputError: the disk is full.
    """
    name = _name(model)
    _refuse_unfit(model, name)
    if tokenizer is None:
        tokenizer = _tokenizer_of(model)
    with tempfile.TemporaryDirectory(prefix="truthgpt-") as place:
        directory = Path(place, "model")
        _save(model, tokenizer, directory, name)
        difference = _difference(model, load_model(directory))
        if difference is not None:
            raise _unfit(name, difference)
        size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
        yield ResolvedModel(name, "directory", directory, size)


def _name(model: Any) -> str:
    return f"{getattr(model, 'name_or_path', '') or type(model).__name__} in memory"


def _unfit(name: str, reason: str) -> ModelError:
    return ModelError(
        f"{name} cannot be measured, because another process could not load it: {reason}",
        hint="Give the model as it was before it was changed, with all optimizations at once.",
    )


def _refuse_unfit(model: Any, name: str) -> None:
    if not isinstance(model, PreTrainedModel):
        raise _unfit(name, f"a {type(model).__name__} is not a model of transformers")
    devices = sorted({str(each.device) for each in model.parameters()})
    if len(devices) > 1 or devices == ["meta"]:
        raise ModelError(
            f"{name} cannot be measured: it is on {', '.join(devices)}",
            hint="Put all of it on one device.",
        )
    for path, module in model.named_modules():
        # What accelerate puts in place of a forward only moves tensors.
        replaced = "forward" in vars(module) and not hasattr(module, "_hf_hook")
        if replaced or getattr(module, "_compiled_call_impl", None) is not None:
            raise _unfit(name, f"the forward of {path or 'the model'} was replaced or compiled")


def _tokenizer_of(model: Any) -> Any:
    hint = "Give the tokenizer too."
    if not model.name_or_path:
        raise ModelError(
            "Measuring needs a tokenizer, and the model does not say where it came from", hint=hint
        )
    try:
        return load_tokenizer(Path(model.name_or_path))
    except ModelError as error:
        raise ModelError(f"Measuring needs a tokenizer: {error.message}", hint=hint) from error


def _save(model: Any, tokenizer: Any, directory: Path, name: str) -> None:
    with quiet(), _ordinary(model):
        try:
            model.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
        except Exception as error:
            full = explain_write_error(error, directory)
            if full is not None:
                raise OutputError(
                    full.message, hint="Free some space, or set TMPDIR to a place with more."
                ) from error
            raise ModelError(
                f"{name} cannot be saved, which measuring needs: {in_one_line(error)}"
            ) from error


@contextmanager
def _ordinary(model: Any) -> Iterator[None]:
    """Take from a model what makes transformers refuse to save it, or load it otherwise."""
    attributes = vars(model)
    before = {name: attributes[name] for name in _SWAPPED if name in attributes}
    config = copy.deepcopy(model.config)
    # Left on a model that was dequantized; one that is quantized shows in its modules.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        config.tie_word_embeddings = False
    attributes.update(config=config, hf_quantizer=None, is_quantized=False)
    try:
        yield
    finally:
        for name in _SWAPPED:
            attributes.pop(name, None)
        attributes.update(before)


def _difference(model: Any, loaded: Any) -> str | None:
    """Say where two models differ, in a few words; None if they are the same."""
    modules = dict(loaded.named_modules())
    for path, module in model.named_modules():
        kind, there = type(module), modules.get(path)
        if there is None:
            return f"{path}, a {kind.__name__}, would be missing"
        if type(there) is not kind:
            return f"{path or 'it'} is a {kind.__name__} and would be a {type(there).__name__}"
    tensors, others = model.state_dict(), loaded.state_dict()
    odd = sorted(set(tensors) ^ set(others))
    if odd:
        return f"{odd[0]} would be {'missing' if odd[0] in tensors else 'there too'}"
    changed = next((key for key in tensors if not _same(tensors[key], others[key])), None)
    return None if changed is None else f"{changed} would have another dtype or other values"


def _same(one: Tensor, other: Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    # As bytes: a NaN is not equal to itself.
    one, other = (each.detach().cpu().contiguous().view(-1) for each in (one, other))
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))
