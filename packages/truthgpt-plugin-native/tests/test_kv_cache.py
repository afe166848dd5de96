"""The dtype of keys and values: who chooses it, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from native_models import make_model

from truthgpt_core.decoding import EngineOptions, GenerationError
from truthgpt_core.optimization import OptimizationContext, OptimizationError, Stage
from truthgpt_core.sources import ResolvedModel
from truthgpt_plugin_native.engine import NativeEngine, make_engine
from truthgpt_plugin_native.kv_cache import KVCacheDtype
from truthgpt_plugin_native.plugin import NativePlugin

CONTEXT = OptimizationContext(device="cpu", cache_dir=Path())


def bytes_of(engine: Any) -> int:
    """Return what keys and values of a token take."""
    found: int = engine.describe()["cache_bytes_per_token"]
    return found


def test_int8_costs_little(ids: list[int], own_logits: Any) -> None:
    """Logits are some 0.0001 nats from the model's own, and not the same."""
    model = make_model("Llama")
    own = own_logits(model, ids).log_softmax(-1)
    given = NativeEngine(model, torch.int8).prompt_logits(ids).log_softmax(-1)
    assert 0 < float((own.exp() * (own - given)).sum(-1).mean()) < 1e-3


@pytest.mark.parametrize(
    ("dtype", "expected"),
    # Of two layers with two heads of 16 numbers: a key and a value, and their scales.
    [("float32", 4 * 2 * 16 * 4), ("bfloat16", 4 * 2 * 16 * 2), ("int8", 4 * (2 * 16 + 2 * 4))],
)
def test_the_optimization_chooses_what_the_engine_keeps(dtype: str, expected: int) -> None:
    model = make_model("Llama")
    applied = KVCacheDtype(dtype=dtype).apply(model, CONTEXT)
    assert applied.coverage.covered == ("model.layers.0.self_attn", "model.layers.1.self_attn")
    engine = make_engine(applied.model)
    assert engine is not None
    assert bytes_of(engine) == expected


def test_its_settings_make_the_same_again() -> None:
    """What is saved with a model is what it was made with."""
    settings = KVCacheDtype().apply(make_model("Llama"), CONTEXT).settings
    assert settings == {"dtype": "int8"}
    assert KVCacheDtype(**settings).stage is Stage.EXECUTION


def test_it_is_used_once_the_engine_has_computed_a_token() -> None:
    """Neither making an engine proves anything, nor what PyTorch computes."""
    model, optimization = make_model("Llama"), KVCacheDtype()
    assert not optimization.was_used(model)
    optimization.apply(model, CONTEXT)
    engine = make_engine(model)
    model(input_ids=torch.tensor([[1, 2, 3]]))
    assert not optimization.was_used(model)
    assert engine is not None
    engine.prompt_logits([1])
    assert optimization.was_used(model)


def test_it_is_not_applied_twice() -> None:
    model = make_model("Llama")
    KVCacheDtype().apply(model, CONTEXT)
    with pytest.raises(OptimizationError, match="chosen already"):
        KVCacheDtype(dtype="bfloat16").apply(model, CONTEXT)


def test_it_needs_a_cpu() -> None:
    assert KVCacheDtype().check("cpu").ok
    assert "cuda:0" in KVCacheDtype().check("cuda:0").reason


def engine_with(model: Any, **given: Any) -> tuple[Any, dict[str, Any]]:
    """Make an engine with options of generating; return it and what it left of them."""
    options = EngineOptions(device="cpu", load=lambda: model, given=given)
    engine = NativePlugin().make_engine(ResolvedModel("model", "directory"), options)
    return engine, options.given


def test_an_option_goes_before_the_optimization() -> None:
    """The engine takes it, and leaves the others."""
    model = make_model("Llama")
    KVCacheDtype(dtype="bfloat16").apply(model, CONTEXT)
    engine, left = engine_with(model, kv_cache="int8", other=1)
    assert bytes_of(engine) == bytes_of(NativeEngine(model, torch.int8))
    assert left == {"other": 1}


def test_an_option_is_left_where_the_engine_runs_nothing() -> None:
    """The engine that runs the model then refuses it by name."""
    engine, left = engine_with(torch.nn.Linear(2, 2), kv_cache="int8")
    assert engine is None
    assert left == {"kv_cache": "int8"}


@pytest.mark.parametrize("wrong", ["int4", "in8", "", 8, None, ["int8"], torch.int8])
def test_a_wrong_option_is_an_error_before_the_model_is_loaded(wrong: Any) -> None:
    def load() -> Any:
        raise AssertionError

    options = EngineOptions(device="cpu", load=load, given={"kv_cache": wrong})
    with pytest.raises(GenerationError, match=r"^kv_cache is .*: it must be one of int8, "):
        NativePlugin().make_engine(ResolvedModel("model", "directory"), options)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_has_no_scale_touches_no_other_sequence(bad: float, ids: list[int]) -> None:
    """What is not finite shows in the logits after it; other sequences have their bits."""
    model = make_model("Llama")
    engine = NativeEngine(model, torch.int8)
    with torch.no_grad():
        model.model.embed_tokens.weight[0] = bad
    clean = [each or 1 for each in ids[:40]]
    before = engine.prompt_logits(clean)
    spoiled, other = engine.open(60, 2)
    first, second = engine.forward([spoiled, other], [[0, *clean], clean], all_logits=True)
    assert torch.equal(second, before)
    assert not first.isfinite().any()
