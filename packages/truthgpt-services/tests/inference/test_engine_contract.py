"""The engine of PyTorch keeps the contract of engines, with each kind of cache."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from truthgpt_core.plugin_system import PluginManager
from truthgpt_core.testing import EngineContract
from truthgpt_services.inference.engine import TorchEngine
from truthgpt_services.testing import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A Llama."""
    directory = tmp_path_factory.mktemp("model")
    write_tiny_model(directory)
    return AutoModelForCausalLM.from_pretrained(directory)


def engine_of(model: Any) -> TorchEngine:
    """Return an engine with the hooks of the services alone."""
    manager = PluginManager()
    manager.activate("services")
    return TorchEngine(model, manager.hooks)


class TestTorch(EngineContract):
    """A model with a static cache; sums in another order round otherwise."""

    tolerance = 1e-4

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, model: Any) -> TorchEngine:
        """It."""
        return engine_of(model)

    @pytest.fixture(scope="class")
    @classmethod
    def other_engine(cls, model: Any) -> TorchEngine:
        """Another one for the same model."""
        return engine_of(model)


class TestTorchDynamic(EngineContract):
    """A model whose cache grows with the sequence."""

    tolerance = 1e-4

    @pytest.fixture
    def engine(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> TorchEngine:
        """One that cannot be compiled with a static cache."""
        monkeypatch.setattr(type(model), "_can_compile_fullgraph", False)
        return engine_of(model)

    @pytest.fixture
    def other_engine(self, model: Any) -> TorchEngine:
        """Another one for the same model."""
        return engine_of(model)
