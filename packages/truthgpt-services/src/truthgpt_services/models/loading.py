"""Loading models with transformers: safetensors only, no code from the model, no noise."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from truthgpt_core.config.values import DTYPE_ALIASES, dtype_name
from truthgpt_core.errors import did_you_mean
from truthgpt_services.errors import DeviceError, ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LONGEST_DEVICE = 60


def pick_device(asked: str = "auto") -> torch.device:
    """Return the device to run on: the one asked for, or the first GPU, or the CPU.

    Raises:
        DeviceError: there is no such device on this machine; it names those that there are.
    """
    if asked == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    available = _available_devices()
    have = f"Available: {', '.join(available)}."
    shown = asked if len(asked) <= _LONGEST_DEVICE else f"{asked[:_LONGEST_DEVICE]}…"
    try:
        device = torch.device(asked)
    except (RuntimeError, ValueError, TypeError):
        raise DeviceError(f'Unknown device "{shown}"', hint=have) from None
    if device.type not in {name.partition(":")[0] for name in available}:
        raise DeviceError(f'There is no device "{shown}" on this machine', hint=have)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeviceError(
            f'The device "{shown}" cannot be used: {_first(error)}', hint=have
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
        close = did_you_mean(name[:_LONGEST_DEVICE], [*DTYPES, *DTYPE_ALIASES])
        raise ModelError(
            f'There is no dtype "{given!s:.60}" for weights',
            hint=f"{close} {known}" if close else known,
        )
    return DTYPES[name]


def load_config(directory: Path) -> Any:
    """Read a model's configuration.

    Raises:
        ModelError: it cannot be read, or it needs code that comes with the model.
    """
    with quiet():
        try:
            return AutoConfig.from_pretrained(directory, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{directory}/config.json cannot be used: {_first(error)}") from error


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
        ModelError: it cannot be loaded.
    """
    config = load_config(directory)
    with quiet():
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                directory,
                config=config,
                dtype=dtype or "auto",
                use_safetensors=True,
                local_files_only=True,
            )
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise ModelError(
                f"The model in {directory} cannot be loaded: {_first(error)}"
            ) from error
        except Exception as error:
            if type(error).__name__ != "SafetensorError":
                raise
            raise ModelError(f"The weights in {directory} are damaged: {error}") from error
    if device is not None:
        model.to(device)
    model.eval()
    return model


def load_tokenizer(directory: Path) -> Any:
    """Load the tokenizer of a transformers directory.

    Raises:
        ModelError: it has none, or it cannot be read.
    """
    with quiet():
        try:
            return AutoTokenizer.from_pretrained(directory, local_files_only=True)
        except Exception as error:
            raise ModelError(f"{directory} has no tokenizer that works: {_first(error)}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and advice from the terminal, for a while."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torchao = logging.getLogger("torchao")
    level = torchao.level
    torchao.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torchao.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
