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

from truthgpt_services.errors import ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(asked: str = "auto") -> torch.device:
    """Return the device to run on: the one asked for, or the first GPU, or the CPU.

    Raises:
        ModelError: there is no such device on this machine.
    """
    if asked == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f'There is no device "{asked}" here: {reason}') from None
    return device


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
