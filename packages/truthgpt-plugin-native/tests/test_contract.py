"""The contract of engines, kept by the engine to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from native_models import Int8, make_model, with_layers

from truthgpt_core.testing import EngineContract
from truthgpt_plugin_native.engine import NativeEngine


class TestFloats(EngineContract):
    """A model in float32."""

    @pytest.fixture(scope="session")
    def other_engine(self, model: Any) -> NativeEngine:
        """Another one for the same model."""
        return NativeEngine(model, torch.float32)


class TestIntegers(EngineContract):
    """A quantized model, with keys and values in bfloat16."""

    @pytest.fixture(scope="session")
    def engine(self) -> NativeEngine:
        """Of integers."""
        return NativeEngine(with_layers(make_model("Qwen3"), Int8, 32), torch.bfloat16)

    @pytest.fixture(scope="session")
    def other_engine(self, model: Any) -> NativeEngine:
        """One for another model."""
        return NativeEngine(model, torch.float32)


class TestIntegerCache(EngineContract):
    """Keys and values in int8."""

    @pytest.fixture(scope="session")
    def engine(self) -> NativeEngine:
        """Of a model in bfloat16."""
        return NativeEngine(make_model("Gemma").to(torch.bfloat16), torch.int8)

    @pytest.fixture(scope="session")
    def other_engine(self, model: Any) -> NativeEngine:
        """One for another model."""
        return NativeEngine(model, torch.float32)
