"""Which layers are covered, which are left alone and why, and what is refused."""

from __future__ import annotations

from fnmatch import fnmatchcase
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from truthgpt_core.optimization import (
    Coverage,
    OptimizationContext,
    OptimizationError,
    SourceModel,
)
from truthgpt_plugin_quantize.int8 import Int8Linear
from truthgpt_plugin_quantize.optimization import Quantize

NAMES = (
    "layers.0.attention.query",
    "layers.0.attention.output",
    "layers.0.up",
    "layers.1.attention.query",
    "layers.1.attention.output",
    "layers.1.up",
    "output",
)


class Conv1D(nn.Module):
    """As in GPT-2: a linear layer with its weights the other way around."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 32))


class Experts(nn.Module):
    """As in a mixture of experts: the weights of three layers in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 32, 32))


def block() -> nn.ModuleDict:
    """Make one of the two blocks of `model`."""
    linear = lambda: nn.Linear(32, 32)  # noqa: E731
    attention = nn.ModuleDict({"query": linear(), "output": linear()})
    return nn.ModuleDict({"attention": attention, "up": linear(), "norm": nn.LayerNorm(32)})


def model() -> nn.ModuleDict:
    """Make a model whose linear layers are `NAMES`."""
    blocks = nn.ModuleList([block(), block()])
    return nn.ModuleDict(
        {"embed": nn.Embedding(9, 32), "layers": blocks, "output": nn.Linear(32, 9)}
    )


def covered_by(context: OptimizationContext, **options: Any) -> set[str]:
    """Apply with `options`, and return what was covered."""
    changed = model()
    applied = Quantize(**options).apply(changed, context)
    found = {n for n, each in changed.named_modules() if isinstance(each, Int8Linear)}
    assert found == set(applied.coverage.covered)
    return found


def test_every_linear_layer_is_covered(context: OptimizationContext) -> None:
    """By default all linear layers are quantized, and nothing else is touched."""
    changed = model()
    coverage = Quantize().apply(changed, context).coverage
    assert coverage == Coverage("linear layers", NAMES)
    assert isinstance(changed["embed"], nn.Embedding)
    assert not [each for each in changed.modules() if isinstance(each, nn.Linear)]


@pytest.mark.parametrize(
    ("pattern", "left_alone"),
    [
        ("output", {"layers.0.attention.output", "layers.1.attention.output", "output"}),
        ("=output", {"output"}),
        ("=layers.0.up", {"layers.0.up"}),
        ("attention.output", {"layers.0.attention.output", "layers.1.attention.output"}),
        ("layers.1", {name for name in NAMES if name.startswith("layers.1.")}),
        ("layers.*.up", {"layers.0.up", "layers.1.up"}),
        ("attention", {name for name in NAMES if ".attention." in name}),
        ("?up", set()),
        ("outpu", set()),
    ],
)
def test_skip_leaves_layers_alone(
    pattern: str, left_alone: set[str], context: OptimizationContext
) -> None:
    """A pattern names a layer, a part of its name, or a module that it is in."""
    changed = model()
    coverage = Quantize(skip=pattern).apply(changed, context).coverage
    assert set(coverage.covered) == set(NAMES) - left_alone
    assert dict(coverage.skipped) == dict.fromkeys(left_alone, f"skip={pattern}")
    for name in left_alone:
        assert type(changed.get_submodule(name)) is nn.Linear


def test_modules_says_what_to_cover(context: OptimizationContext) -> None:
    """Only what `modules` names is quantized, less what `skip` names."""
    assert covered_by(context, modules="layers.0") == set(NAMES[:3])
    found = covered_by(context, modules=["layers.0", "=output"], skip="up")
    assert found == {*NAMES[:2], "output"}


@given(
    modules=st.lists(st.sampled_from([*NAMES, "layers.*", "up", "attention", "nothing"])),
    skip=st.lists(st.sampled_from([*NAMES, "*.1.*", "query", "output", "=output"])),
)
@settings(max_examples=60, deadline=None, database=None)
def test_each_linear_layer_is_counted_once(modules: list[str], skip: list[str]) -> None:
    """Whatever the patterns, coverage names all linear layers, and skip wins over modules."""
    context = OptimizationContext("cpu", None)  # type: ignore[arg-type]
    try:
        coverage = Quantize(modules=modules, skip=skip).apply(model(), context).coverage
    except OptimizationError as error:
        assert "cover none" in str(error)  # noqa: PT017
        return
    left_alone = [name for name, _ in coverage.skipped]
    assert sorted([*coverage.covered, *left_alone]) == sorted(NAMES)
    assert coverage.total == len(NAMES)
    for name in coverage.covered:
        assert name not in skip
        assert not any(fnmatchcase(name, pattern) for pattern in skip)
        assert any(pattern in name or fnmatchcase(name, pattern) for pattern in modules), (
            f"{name} is not among {modules}"
        )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_layer_that_is_not_finite_is_left_alone_by_name(
    bad: float, context: OptimizationContext
) -> None:
    """One damaged layer keeps its weights and is named with the reason; the rest is covered."""
    changed = model()
    with torch.no_grad():
        changed["output"].weight[0, 0] = bad
    coverage = Quantize().apply(changed, context).coverage
    assert coverage.skipped == (("output", "its weights are not all finite"),)
    assert coverage.covered == NAMES[:-1]
    assert type(changed["output"]) is nn.Linear


def test_layers_of_other_kinds_are_named_with_the_reason(context: OptimizationContext) -> None:
    """What only looks like a layer, stacked experts and subclasses are skipped with a reason."""

    class Special(nn.Linear):
        pass

    changed = model()
    changed["a"], changed["b"], changed["c"] = Conv1D(), Experts(), Special(4, 4)
    reasons = dict(Quantize().apply(changed, context).coverage.skipped)
    assert "Conv1D may not be a plain linear layer" in reasons["a"]
    assert "Experts keeps several layers in one tensor" in reasons["b"]
    assert "Special may not be a plain linear layer" in reasons["c"]


def test_convolutions_are_not_counted_as_linear_layers(context: OptimizationContext) -> None:
    """A convolution has weights of three dimensions too, and is no layer of this kind."""
    changed = model()
    changed["convolution"] = nn.Conv1d(4, 4, 3)
    assert Quantize().apply(changed, context).coverage.total == len(NAMES)


def refused(changed: nn.Module, context: OptimizationContext, **options: Any) -> str:
    """Apply, see that it is refused and that nothing changed; return what was said."""
    before = {name: id(each) for name, each in changed.named_modules()}
    weights = {name: each.clone() for name, each in changed.state_dict().items()}
    with pytest.raises(OptimizationError) as caught:
        Quantize(**options).apply(changed, context)
    assert {name: id(each) for name, each in changed.named_modules()} == before
    for name, each in changed.state_dict().items():
        assert torch.equal(each, weights[name])
    return str(caught.value)


def test_a_model_without_such_layers_is_refused_with_the_reason(
    context: OptimizationContext,
) -> None:
    """If nothing can be covered it says why, and the model is as it was."""
    only = nn.ModuleDict({"a": Conv1D(), "b": Conv1D()})
    assert "Conv1D may not be a plain linear layer" in refused(only, context)
    assert "it has none" in refused(nn.ModuleDict({"embed": nn.Embedding(3, 4)}), context)
    assert "not among modules" in refused(model(), context, modules="lm_haed")


def test_a_quantized_model_is_refused(context: OptimizationContext) -> None:
    """Quantizing twice would round twice; it is refused and the model stays as it is."""
    changed = model()
    Quantize(skip="output").apply(changed, context)
    assert "quantized already" in refused(changed, context)


def test_a_model_that_another_library_quantized_is_refused(context: OptimizationContext) -> None:
    """A model loaded with bitsandbytes is refused by that name, with what to do instead."""
    from transformers.utils.quantization_config import QuantizationMethod

    changed = model()
    how = SimpleNamespace(quant_method=QuantizationMethod.BITS_AND_BYTES)
    changed.hf_quantizer = SimpleNamespace(quantization_config=how)
    said = refused(changed, context)
    assert "quantized by bitsandbytes" in said
    assert "Load it without" in said


def test_progress_is_told(context: OptimizationContext) -> None:
    """Progress begins at 0, counts each layer and ends at all of them."""
    seen: list[tuple[str, int, int]] = []
    listening = OptimizationContext(
        "cpu", context.cache_dir, progress=lambda *told: seen.append(told)
    )
    Quantize().apply(model(), listening)
    assert seen == [("Quantizing", done, len(NAMES)) for done in range(len(NAMES) + 1)]


@pytest.mark.parametrize(
    ("config", "by"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
        ({"quantization_config": {"load_in_8bit": True}}, "another library"),
    ],
)
def test_a_source_that_is_quantized_already_is_refused_unloaded(
    config: dict[str, Any], by: str
) -> None:
    """What config.json says of another library is enough to refuse, with what to do instead."""
    verdict = Quantize().check_source(SourceModel("model", config=config))
    assert verdict.reason == f"it is quantized already, by {by}"
    assert verdict.fix.startswith("Start from the model in floating point")


def test_an_ordinary_source_is_not_refused() -> None:
    """A model in floating point, or one whose configuration says `null`, can be quantized."""
    assert Quantize().check_source(SourceModel("model", config={"dtype": "float32"})).ok
    assert Quantize().check_source(SourceModel("model", config={"quantization_config": None})).ok
