from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from truthgpt_services.testing import write_tiny_model

# What these tests say of steps and their speed holds for PyTorch's engine; `test_native.py` lets
# the other one in.
os.environ["TRUTHGPT_PLUGINS_BLOCK"] = "native"
# Read once, by huggingface_hub and by torch: processes that begin warm have read them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def processes_begin_warm(warm_processes: ModuleType) -> None:
    """Let the processes of all tests begin warm, those that fixtures start among them."""


@pytest.fixture(scope="session", autouse=True)
def no_ones_cache(once: Callable[[str, Callable[[Path], None]], Path]) -> Iterator[None]:
    """What is compiled for one test is there for all tests of a run, and nothing else is."""
    cache = once("cache", lambda _: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUTHGPT_CACHE", str(cache))
        patch.setenv("TRUTHGPT_SETTINGS", str(cache / "settings"))
        yield


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model that is optimized in seconds."""
    directory = tmp_path_factory.mktemp("model") / "tiny"
    write_tiny_model(directory)
    return directory


@pytest.fixture(scope="session")
def truthgpt() -> Run:
    """Run the installed command in a process of its own, off line."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(Path(sys.executable).with_name("truthgpt")), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            env=os.environ | {"COLUMNS": "100"} | environment,
        )

    return run


@pytest.fixture(scope="session")
def optimized(tiny_model: Path, truthgpt: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after quantize and compile, typed in the wrong order, both accepted."""
    output = tmp_path_factory.mktemp("optimized") / "out"
    config = output.with_name("optimize.yaml")
    # Random weights are quantized badly, and a tiny model gains nothing from compiling:
    # these tests are about everything else.
    config.write_text(json.dumps({"keep_all": True, "quick": True}))
    done = truthgpt(
        "optimize", tiny_model, "--config", config, "--apply", "compile,quantize", "-o", output
    )
    assert done.returncode == 0, done.stderr
    return output
