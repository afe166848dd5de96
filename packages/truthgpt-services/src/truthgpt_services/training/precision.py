"""In which type matrix products are computed, and whether the loss is scaled for it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_precision(requested: str, device: torch.device) -> str:
    """Return the precision to train in.

    Args:
        requested: `float32`, `bfloat16`, `float16`, or `auto`: bfloat16 where the device has
            instructions for it, else float32.
        device: where it is computed.
    """
    if requested != "auto":
        return requested
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu":
        # Without AMX or AVX512-BF16 a CPU converts every number, and is slower than in float32.
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        if any(getattr(torch.cpu, check, bool)() for check in checks):
            return "bfloat16"
    return "float32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which matrix products are computed in a precision."""
    if precision not in TYPES:
        return nullcontext()
    return torch.autocast(device.type, TYPES[precision])


def make_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Return a scaler of the loss: one at work for float16, else one that does nothing."""
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")
