"""Where compiled code is kept, and that the next process finds it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from truthgpt_core.optimization import OptimizationContext
from truthgpt_plugin_compile.optimization import TorchCompile

NAME = "TORCHINDUCTOR_CACHE_DIR"
SCRIPT = Path(__file__).with_name("decode_once.py")


def test_it_is_the_directory_of_the_optimization(
    eager: LlamaForCausalLM, context: OptimizationContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled code goes into the cache directory that the context names, which is made."""
    monkeypatch.delenv(NAME)
    TorchCompile().apply(eager, context)
    assert os.environ[NAME] == str(context.cache_dir)
    assert context.cache_dir.is_dir()


def test_the_default_of_torch_was_chosen_by_nobody(
    eager: LlamaForCausalLM, context: OptimizationContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch writes its own default into the environment; that does not count as a choice."""
    monkeypatch.setenv(NAME, str(Path(tempfile.gettempdir(), "torchinductor_somebody")))
    TorchCompile().apply(eager, context)
    assert os.environ[NAME] == str(context.cache_dir)


def test_a_choice_stays(
    eager: LlamaForCausalLM,
    context: OptimizationContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A directory that a person chose stays chosen."""
    monkeypatch.setenv(NAME, str(tmp_path / "mine"))
    TorchCompile().apply(eager, context)
    assert os.environ[NAME] == str(tmp_path / "mine")
    assert not context.cache_dir.exists()


def decode_once(directory: Path) -> str:
    """Run the script in a new process that has chosen no directory itself."""
    environment = {key: value for key, value in os.environ.items() if key != NAME}
    process = subprocess.run(
        [sys.executable, str(SCRIPT), str(directory)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return process.stdout.strip()


@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler"
)
def test_the_next_process_finds_what_was_compiled(tmp_path: Path) -> None:
    """The first process compiles into the directory, the second one takes it from there."""
    directory = tmp_path / "kept"
    assert decode_once(directory) == "found 0"
    assert [each for each in directory.rglob("*.so") if each.stat().st_size]
    assert decode_once(directory) == "found 1"
