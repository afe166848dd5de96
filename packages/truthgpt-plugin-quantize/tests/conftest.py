"""What the tests of this package share."""

from __future__ import annotations

import os
import platform

# Tests load nothing from the hub; without this a mistake would go and look.
os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from truthgpt_core.compiled_code import find_compiler
from truthgpt_core.optimization import OptimizationContext
from truthgpt_plugin_quantize.native import library


def pytest_configure(config: pytest.Config) -> None:
    """Let pass what torch 2.13 does to itself: inductor imports a class made with torch.jit."""
    config.addinivalue_line(
        "filterwarnings", r"ignore:`torch\.jit\.script_method` is deprecated:DeprecationWarning"
    )


@pytest.fixture(scope="session", autouse=True)
def _compiled_code_is_kept(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Iterator[None]:
    # Compiling takes seconds: once for all tests, in all processes.
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUTHGPT_CACHE", str(shared / "kept"))
        yield


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let there be no C++ compiler, whatever was loaded before."""
    monkeypatch.setenv("CXX", "nothing-of-this-name")
    library.load.cache_clear()
    yield
    library.load.cache_clear()


@pytest.fixture
def compiler_without_simd(tmp_path: Path) -> str:
    """A C++ compiler that makes code for processors without AVX."""
    compiler = tmp_path / "compiler"
    flags = "-mno-avx" if platform.machine() == "x86_64" else ""
    compiler.write_text(f'#!/bin/sh\nexec {find_compiler()} "$@" {flags}\n')
    compiler.chmod(0o755)
    return str(compiler)


@pytest.fixture
def context(tmp_path: Path) -> OptimizationContext:
    """What an optimization is given besides the model, on a CPU."""
    return OptimizationContext("cpu", tmp_path)


@pytest.fixture(autouse=True)
def _same_weights_each_time() -> None:
    torch.manual_seed(0)
