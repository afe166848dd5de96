"""What the tests of this package share."""

from __future__ import annotations

import os
import sys

# Tests load nothing from the hub; without this a mistake would go and look.
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest
import torch

from truthgpt_core.optimization import OptimizationContext

# Tests are not on the path of modules.
sys.path.insert(0, str(Path(__file__).parent))
from reference_matmul import multiply


def pytest_configure(config: pytest.Config) -> None:
    """Let pass what torch 2.13 does to itself: inductor imports a class made with torch.jit."""
    config.addinivalue_line(
        "filterwarnings", r"ignore:`torch\.jit\.script_method` is deprecated:DeprecationWarning"
    )


@pytest.fixture
def context(tmp_path: Path) -> OptimizationContext:
    """What an optimization is given besides the model, where a plugin multiplies integers."""
    return OptimizationContext("cpu", tmp_path, make_stored_matmul=lambda: multiply)


@pytest.fixture
def alone(tmp_path: Path) -> OptimizationContext:
    """What it is given where no plugin does."""
    return OptimizationContext("cpu", tmp_path)


@pytest.fixture(autouse=True)
def _same_weights_each_time() -> None:
    torch.manual_seed(0)
