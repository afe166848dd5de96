"""What the tests of this package share."""

from __future__ import annotations

import os

# Tests load nothing from the hub; without this a mistake would go and look.
os.environ["HF_HUB_OFFLINE"] = "1"
# A pool of processes that compile is slower to start than these models are to compile.
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from truthgpt_core.optimization import OptimizationContext
from truthgpt_plugin_compile.optimization import TorchCompile


def pytest_configure(config: pytest.Config) -> None:
    """Let pass what torch 2.13 does to itself: inductor imports a class made with torch.jit."""
    config.addinivalue_line(
        "filterwarnings", r"ignore:`torch\.jit\.script_method` is deprecated:DeprecationWarning"
    )


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of compiled code for all tests of this run, so that few compile anew."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return shared / "kernels"


@pytest.fixture(autouse=True)
def _nothing_compiled(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(kernels))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def notes() -> list[dict[str, str]]:
    """The notes of a test, each as `about` and `note`."""
    return []


@pytest.fixture
def context(tmp_path: Path, notes: list[dict[str, str]]) -> OptimizationContext:
    """What an optimization is given besides the model, on a CPU."""

    def note(about: str, sentence: str) -> None:
        notes.append({"about": about, "note": sentence})

    return OptimizationContext("cpu", tmp_path / "optimization", note=note)


@pytest.fixture
def eager() -> LlamaForCausalLM:
    """A tiny Llama with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def compiled(eager: LlamaForCausalLM, context: OptimizationContext) -> Any:
    """The same model with `torch_compile` applied."""
    return TorchCompile(region="blocks").apply(copy.deepcopy(eager), context).model
