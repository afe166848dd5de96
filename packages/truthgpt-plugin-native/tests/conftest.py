"""What the tests of this package share."""

from __future__ import annotations

import os

# Tests load nothing from the hub; without this a mistake would go and look.
os.environ["HF_HUB_OFFLINE"] = "1"

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from collections.abc import Callable
from typing import Any

import pytest
import torch
from native_models import VOCABULARY, make_model

from truthgpt_plugin_native import library
from truthgpt_plugin_native.engine import NativeEngine


@pytest.fixture(scope="session", autouse=True)
def compiled_once(once: Callable[[str, Callable[[Path], object]], Path]) -> None:
    """Where nothing is compiled yet, one process of a run of tests does it, and others wait."""
    once("compiled", lambda _: library.load())


@pytest.fixture(scope="session")
def ids() -> list[int]:
    """A text of 400 tokens."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, VOCABULARY, (400,), generator=generator).tolist()


@pytest.fixture(scope="session")
def model() -> Any:
    """A Llama."""
    return make_model("Llama")


@pytest.fixture(scope="session")
def engine(model: Any) -> NativeEngine:
    """Its engine."""
    return NativeEngine(model, torch.float32)


@pytest.fixture(scope="session")
def own_logits() -> Callable[[Any, list[int]], torch.Tensor]:
    """What a model computes itself: logits after each token, of shape (tokens, vocabulary)."""

    def compute(model: Any, tokens: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = model(input_ids=torch.tensor([tokens])).logits[0]
        return logits

    return compute
