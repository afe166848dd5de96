"""The random number generators of this process: reading them, setting them, keeping them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Set the generators of python, numpy and torch, on all devices.

    Args:
        seed: from 0 to 2**32 - 1.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Return where the generators of python, numpy and torch are, as plain values and tensors."""
    numpy: dict[str, Any] = np.random.get_state(legacy=False)
    inner = numpy["state"]
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {**inner, "key": inner["key"].tolist()}},
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators where `random_state` found them.

    Args:
        state: what it returned. Generators of GPUs that are not here are passed over.
    """
    random.setstate(state["python"])
    numpy = state["numpy"]
    key = np.array(numpy["state"]["key"], dtype=np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for device, each in enumerate(state.get("cuda", ())[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(each, device)


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Leave the generators as they were, whatever the block draws from them."""
    python, numpy = random.getstate(), np.random.get_state()
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
