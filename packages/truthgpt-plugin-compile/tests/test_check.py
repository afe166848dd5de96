"""Whether this machine can compile, said before any work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from truthgpt_core.optimization import Verdict
from truthgpt_plugin_compile.optimization import TorchCompile


def program(directory: Path, name: str) -> Path:
    """Make a file that can be run."""
    path = directory / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def _a_machine_with_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")


def test_without_a_compiler_it_says_so_and_what_to_do() -> None:
    """No C++ compiler is a verdict with a reason and a fix, not a crash at the first token."""
    verdict = TorchCompile().check("cpu")
    assert not verdict.ok
    assert "needs a C++ compiler" in verdict.reason
    assert "g++" in verdict.fix


def test_with_a_compiler_it_can(tmp_path: Path) -> None:
    """The compiler that inductor takes if nothing is said is enough."""
    program(tmp_path, "g++")
    assert TorchCompile().check("cpu") == Verdict.yes()


def test_a_compiler_that_inductor_would_not_find_is_not_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inductor looks for g++ only; clang++ alone counts once CXX names it."""
    program(tmp_path, "clang++")
    assert not TorchCompile().check("cpu").ok
    monkeypatch.setenv("CXX", "clang++")
    assert TorchCompile().check("cpu").ok


def test_a_compiler_named_by_cxx_has_to_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CXX goes before what is on the path, and a wrong one is named in the reason."""
    program(tmp_path, "g++")
    monkeypatch.setenv("CXX", "no-such-compiler")
    verdict = TorchCompile().check("cpu")
    assert not verdict.ok
    assert "CXX=no-such-compiler" in verdict.reason
    assert "CXX" in verdict.fix


def test_cxx_may_be_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CXX may name a compiler that is not on the path."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("CXX", str(program(elsewhere, "my-compiler")))
    assert TorchCompile().check("cpu") == Verdict.yes()


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_needs_triton(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a C++ compiler does not help: without triton the verdict is no."""
    program(tmp_path, "g++")
    monkeypatch.setitem(sys.modules, "triton", None)
    verdict = TorchCompile().check(device)
    assert not verdict.ok
    assert "triton" in verdict.reason
    assert "pip install triton" in verdict.fix


def test_a_gpu_with_triton_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With triton installed the verdict is yes, with no C++ compiler looked for."""
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert TorchCompile().check("cuda") == Verdict.yes()
