"""What `truthgpt optimize` measured is what `truthgpt serve` serves, or it serves nothing."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from truthgpt_core.application import Application
from truthgpt_plugin_serve.check import check_models
from truthgpt_plugin_serve.context import Context
from truthgpt_plugin_serve.served_model import ServedModel, load
from truthgpt_plugin_serve.settings import Settings

pytestmark = pytest.mark.slow

SETTINGS = Settings(engine="torch", device="cpu")


@pytest.fixture(scope="module")
def quantized(
    tiny_model: Path,
    truthgpt: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The tiny model as `truthgpt optimize` leaves it."""
    output = tmp_path_factory.mktemp("served") / "out"
    config = output.with_name("optimize.yaml")
    config.write_text(json.dumps({"keep_all": True, "quick": True}))
    done = truthgpt("optimize", tiny_model, "--config", config, "--apply", "quantize", "-o", output)
    assert done.returncode == 0, done.stderr
    return output


def checked(directory: Path, fault: Callable[[Any], None] = lambda engine: None) -> ServedModel:
    """Return a model after the server has compared it with its report."""
    model = load("tiny", str(directory), SETTINGS, lambda *_: None, Application())
    fault(model.engine)
    context = Context({"tiny": model}, SETTINGS)
    try:
        asyncio.run(check_models(context))
    finally:
        context.close()
    return model


def wrong_kernel(engine: Any) -> None:
    predict = engine.prompt_logits
    engine.prompt_logits = lambda tokens: predict(tokens).bfloat16().float()


def wrong_rope(engine: Any) -> None:
    engine.model.model.rotary_emb.inv_freq *= 1.1


def swapped_layers(engine: Any) -> None:
    layers = engine.model.model.layers
    layers[0].mlp, layers[1].mlp = layers[1].mlp, layers[0].mlp


def test_a_model_as_it_was_measured_is_ready(quantized: Path) -> None:
    """It says that engine and kernel are the same, and how close it came."""
    model = checked(quantized)
    assert model.why_not_ready is None
    assert "1e-05" in model.check, model.check


@pytest.mark.parametrize("fault", [wrong_kernel, wrong_rope, swapped_layers])
def test_a_model_that_predicts_otherwise_is_not(
    quantized: Path, fault: Callable[[Any], None]
) -> None:
    """Faults that no error shows: a kernel that rounds, other positions, swapped layers."""
    model = checked(quantized, fault)
    assert model.why_not_ready == model.check


def test_a_damaged_record_is_not_taken_for_none(quantized: Path, tmp_path: Path) -> None:
    """Who serves what was measured wants to know."""
    directory = tmp_path / "copy"
    shutil.copytree(quantized, directory)
    record = directory / "replay.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"vocabulary": 1}))
    assert "damaged" in (checked(directory).why_not_ready or "")
