"""Loading models with transformers: safetensors only, no code from the model, no noise."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    dynamic_module_utils,
)
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from truthgpt_core.config.sections import DTYPE_ALIASES, dtype_name
from truthgpt_core.errors import TruthGPTError, did_you_mean, in_one_line, meant_or_known
from truthgpt_core.terminal_text import harmless
from truthgpt_services.errors import DeviceError, ModelError
from truthgpt_services.models.model_files import (
    CONFIG,
    Shapes,
    check_files,
    numbers,
    read_object,
    refuse_impossible_numbers,
    refuse_incomplete,
    stored_shapes,
    weight_files,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_OPTIONS = ("name_or_path", "torch_dtype", "dtype", "device", "gradient_checkpointing")
_LONGEST_DEVICE = 60

_NUMBERS_IN_ONE = 16
"""Most numbers that a format of quantized weights packs into one: two bits in 32."""

_SPARE_NUMBERS = 2**28
"""What a model may have that is in no checkpoint, as masks and rotary tables."""


def pick_device(requested: str = "auto") -> torch.device:
    """Return the device to run on: the one asked for, or the first GPU, or the CPU.

    Raises:
        DeviceError: there is no such device on this machine; it names those that there are.
    """
    if requested == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    available = _available_devices()
    have = f"Available: {', '.join(available)}."
    display_name = (
        requested if len(requested) <= _LONGEST_DEVICE else f"{requested[:_LONGEST_DEVICE]}…"
    )
    try:
        device = torch.device(requested)
    except (RuntimeError, ValueError, TypeError):
        raise DeviceError(f'Unknown device "{display_name}"', hint=have) from None
    if device.type not in {name.partition(":")[0] for name in available}:
        raise DeviceError(f'There is no device "{display_name}" on this machine', hint=have)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeviceError(
            f'The device "{display_name}" cannot be used: {in_one_line(error)}', hint=have
        ) from None
    return device


def _available_devices() -> list[str]:
    """Return the names of the devices that models can run on."""
    found = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    for name in ("mps", "xpu"):
        kind = getattr(torch.backends if name == "mps" else torch, name, None)
        if kind is not None and kind.is_available():
            found.append(name)
    return found


def parse_dtype(given: Any) -> torch.dtype | None:
    """Return the dtype of weights that is asked for, or None for the one they are stored in.

    Args:
        given: a dtype, its name in torch or a short one (`bf16`, `fp16`, `half`, `fp32`); `auto`
            or None for the one of the checkpoint.

    Raises:
        ModelError: it is not the dtype of weights.
    """
    if given is None or given == "auto" or isinstance(given, torch.dtype):
        return given if isinstance(given, torch.dtype) else None
    name = dtype_name(str(given))
    if name not in DTYPES:
        known = f"Known: {', '.join(DTYPES)}."
        raise ModelError(
            f'There is no dtype "{given!s:.60}" for weights',
            hint=meant_or_known(name[:_LONGEST_DEVICE], [*DTYPES, *DTYPE_ALIASES], known),
        )
    return DTYPES[name]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a model: the options of `ModelService.load_model`, understood.

    Attributes:
        dtype: for its weights; None for the one they are stored in.
        device: where to put it.
        gradient_checkpointing: whether to compute activations again instead of keeping them.
    """

    dtype: torch.dtype | None
    device: torch.device
    gradient_checkpointing: bool


def read_load_options(options: Mapping[str, Any] | None) -> LoadOptions:
    """Read the options of `ModelService.load_model`.

    Raises:
        ModelError: one is unknown, or has a wrong value.
        DeviceError: there is no such device on this machine.
    """
    options = options or {}
    for option in options:
        if option not in _OPTIONS:
            raise ModelError(
                f'There is no option "{option}" for loading a model',
                hint=did_you_mean(option, _OPTIONS) or f"Known: {', '.join(_OPTIONS)}.",
            )
    return LoadOptions(
        parse_dtype(options.get("dtype") or options.get("torch_dtype")),
        pick_device(str(options.get("device") or "auto")),
        bool(options.get("gradient_checkpointing")),
    )


def load_config(directory: Path) -> Any:
    """Read a model's configuration.

    Raises:
        ModelError: it cannot be read, it needs code that comes with the model, or it or
            another file of the directory may not be used.
    """
    raw = check_files(directory)
    path = directory / CONFIG
    kind = raw.get("model_type")
    if "auto_map" in raw and not (isinstance(kind, str) and kind in CONFIG_MAPPING):
        raise ModelError(
            f"The model in {directory} needs code that comes with it, which never runs: "
            f"transformers {version('transformers')} does not know its model type, {kind!r:.80}",
            hint="A newer version of transformers may know it.",
        )
    refuse_impossible_numbers(directory, raw)
    with explained(f"{path} cannot be used"), quiet():
        config: Any = AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        if not isinstance(config.dtype, torch.dtype | None):
            raise ModelError(f"{path} cannot be used: its dtype is not one of torch")
    return config


def load_model(
    directory: Path, *, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Any:
    """Load a causal language model from a transformers directory.

    Args:
        directory: with config.json and safetensors.
        dtype: for its weights; None for the one they are stored in.
        device: where to put it; the CPU if None.

    Returns:
        The model, in evaluation mode.

    Raises:
        ModelError: it cannot be loaded, or its checkpoint leaves weights without values.
    """
    config = load_config(directory)
    refuse_too_large(directory, config)
    with explained(f"The model in {directory} cannot be loaded"), quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype=dtype or "auto",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            # Refused below, where they are named.
            ignore_mismatched_sizes=True,
        )
    model, found = loaded
    refuse_random_weights(directory, model, found)
    if device is not None:
        model.to(device)
    model.eval()
    return model


def refuse_random_weights(place: Path, model: Any, found: dict[str, Any]) -> None:
    """Refuse a model that has weights which no file gave a value.

    Args:
        place: where its checkpoint is; for the message.
        model: as transformers loaded it.
        found: what transformers says of the loading.

    Raises:
        ModelError: a tensor is missing or has another shape. What is tied to another one, or
            generated, is not missing.
    """
    refuse_incomplete(
        place,
        type(model).__name__,
        found["missing_keys"],
        found["unexpected_keys"],
        {name: (tuple(stored), tuple(own)) for name, stored, own in found["mismatched_keys"]},
    )


def refuse_too_large(directory: Path, config: Any) -> None:
    """Refuse a configuration of a model that is much larger than its checkpoint.

    Args:
        directory: with config.json and safetensors.
        config: from `load_config`.

    Raises:
        ModelError: it asks for so much, it cannot be built, or a file is damaged.
    """
    shapes = stored_shapes(weight_files(directory))
    packed = _NUMBERS_IN_ONE if getattr(config, "quantization_config", None) else 1
    with explained(f"{directory / CONFIG} cannot be used"), quiet():
        refuse_more_numbers(directory, config, numbers(shapes.values()) * packed, shapes)


def refuse_more_numbers(place: Path, config: Any, most: int, shapes: Shapes | None = None) -> None:
    """Refuse a configuration that asks for more than twice so many numbers.

    transformers gives memory to what a checkpoint lacks before it says so; here the model is
    built without any.

    Args:
        place: where the checkpoint is; for the message.
        config: of the model.
        most: how many numbers the checkpoint can hold.
        shapes: of its tensors, to say which are missing.

    Raises:
        ModelError: it asks for more.
    """
    with torch.device("meta"), no_init_weights():
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model.tie_weights()
    tensors = {id(each): each for each in [*model.parameters(), *model.buffers()]}
    wanted = sum(each.numel() for each in tensors.values())
    if wanted <= 2 * most + _SPARE_NUMBERS:
        return
    if shapes:
        # What is tied has one name in a checkpoint, the first.
        named = {id(each): name for name, each in [*model.state_dict(keep_vars=True).items()][::-1]}
        own = {name: tuple(tensors[each].shape) for each, name in named.items() if each in tensors}
        odd = {
            name: (shapes[name], shape)
            for name, shape in own.items()
            if name in shapes and shapes[name] != shape
        }
        kind = type(model).__name__
        refuse_incomplete(place, kind, own.keys() - shapes, shapes.keys() - own, odd)
    raise ModelError(
        f"The configuration of {place} asks for {wanted:,} numbers, and its weights can be "
        f"{most:,} at most"
    )


def load_generation_config(directory: Path) -> Any:
    """Read generation_config.json, if there is one; None if not.

    Raises:
        ModelError: it cannot be used.
    """
    path = directory / "generation_config.json"
    if not path.exists():
        return None
    read_object(path)
    with explained(f"{path} cannot be used"), quiet():
        return GenerationConfig.from_pretrained(directory, local_files_only=True)


def load_tokenizer(directory: Path) -> Any:
    """Load the tokenizer of a transformers directory.

    Raises:
        ModelError: it has none, it cannot be read, or it cannot encode a text.
    """
    check_files(directory)
    with explained(f"{directory} has no tokenizer that works"), quiet():
        tokenizer: Any = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        with _hide_panics():
            tokenizer.decode(tokenizer("a text").input_ids)
    return tokenizer


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Raise whatever a library raises as a `ModelError` of one line.

    Args:
        what: what cannot be done, as the beginning of a sentence.

    Raises:
        ModelError: anything but an error of ours was raised.
    """
    try:
        yield
    except TruthGPTError:
        raise
    except Exception as error:
        raise ModelError(f"{what}: {_reason(error)}") from error
    except BaseException as error:
        # What pyo3 makes of a panic of the tokenizers is not an Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"{what}: {_reason(error)}") from error


@contextmanager
def _hide_panics() -> Iterator[None]:
    """Hold back standard error, where Rust reports a panic before it is raised."""
    try:
        original = os.dup(2)
    except OSError:
        yield  # nothing is shown then
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(original, 2)
            os.close(original)
            panic = sys.exception()
            if panic is None or isinstance(panic, Exception):
                held.seek(0)
                os.write(2, held.read())


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars, advice and questions from the terminal, for a while."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torchao = logging.getLogger("torchao")
    level = torchao.level
    torchao.setLevel(logging.ERROR)
    # Zero: models made of other models refuse their code, where they would ask whether to run it.
    seconds = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds
        torchao.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    if not lines or "trust_remote_code" in str(error):
        return (
            "it needs code that comes with it, which never runs" if lines else type(error).__name__
        )
    # What these say is not a sentence without their names.
    plain = isinstance(error, OSError | ValueError | RuntimeError | ImportError)
    message = lines[0] if plain else in_one_line(error).partition(" Exception raised from ")[0]
    return harmless(message)[:400]
