"""Models whose weights are not in memory yet: filled in, quantized and let go one by one."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from truthgpt_core.optimization import Applied, OptimizationContext, OptimizationError
from truthgpt_plugin_quantize.int8 import Int8Linear
from truthgpt_plugin_quantize.optimization import Quantize

NAMES = ("0", "1", "2")


def model() -> nn.Sequential:
    """Make a model of three linear layers and a norm."""
    return nn.Sequential(*(nn.Linear(32, 32) for _ in NAMES), nn.LayerNorm(32))


def from_disk(
    full: nn.Sequential, context: OptimizationContext, watch: Callable[[nn.Module], None]
) -> tuple[nn.Sequential, OptimizationContext, list[str]]:
    """Return `full` without its weights, a context that fills them in, and what it was asked."""
    empty = deepcopy(full).to("meta")
    asked: list[str] = []

    def fill(name: str) -> None:
        asked.append(name)
        module = empty.get_submodule(name)
        module.load_state_dict(full.get_submodule(name).state_dict(), assign=True)
        watch(module)

    return empty, replace(context, fill=fill), asked


def quantize_from_disk(
    full: nn.Sequential, context: OptimizationContext, skip: list[str]
) -> tuple[Applied, list[str]]:
    """Quantize `full` as from disk; return what came out and which modules were asked for."""
    empty, filling, asked = from_disk(full, context, lambda _: None)
    return Quantize(skip=skip).apply(empty, filling), asked


def test_the_result_is_that_of_a_model_in_memory(context: OptimizationContext) -> None:
    """Integers, scales, coverage and settings are the same."""
    full = model()
    applied, _ = quantize_from_disk(full, context, [])
    expected = Quantize().apply(deepcopy(full), context)
    assert applied.coverage == expected.coverage
    assert applied.settings == expected.settings
    for name in NAMES:
        ours, theirs = applied.model.get_submodule(name), expected.model.get_submodule(name)
        for key, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[key], tensor)


def test_only_what_is_quantized_is_read(context: OptimizationContext) -> None:
    """A layer that is skipped and one of another kind stay where they are."""
    applied, asked = quantize_from_disk(model(), context, ["1"])
    assert asked == ["0", "2"]
    assert all(each.is_meta for each in [*applied.model[1].parameters()])
    assert all(each.is_meta for each in [*applied.model[3].parameters()])


def test_a_layer_is_gone_before_the_next_one_is_read(context: OptimizationContext) -> None:
    """At no time are the full weights of two layers in memory."""
    alive: weakref.WeakSet[nn.Module] = weakref.WeakSet()
    most = 0

    def watch(module: nn.Module) -> None:
        nonlocal most
        alive.add(module)
        most = max(most, len(alive))

    empty, filling, asked = from_disk(model(), context, watch)
    Quantize().apply(empty, filling)
    assert asked == list(NAMES)
    assert most == 1


def test_a_layer_that_is_not_finite_is_found_when_it_is_read(context: OptimizationContext) -> None:
    """It keeps its weights, and what was chosen leaves it alone when the model is restored."""
    full = model()
    with torch.no_grad():
        full[1].weight[0, 0] = float("nan")
    applied, _ = quantize_from_disk(full, context, [])
    assert applied.coverage.skipped == (("1", "its weights are not all finite"),)
    assert applied.settings["skip"] == ["=1"]
    assert applied.model[1].weight.isnan().sum() == 1
    restored = Quantize(**applied.settings).restore(model().to("meta"), context)
    kinds = [type(each) for each in restored]
    assert kinds == [Int8Linear, nn.Linear, Int8Linear, nn.LayerNorm]


def test_a_model_of_which_no_layer_is_finite_is_refused(context: OptimizationContext) -> None:
    """It is said only after all were read, and no layer was replaced."""
    full = model()
    with torch.no_grad():
        for name in NAMES:
            full.get_submodule(name).weight[0, 0] = float("inf")
    empty, filling, asked = from_disk(full, context, lambda _: None)
    with pytest.raises(OptimizationError, match=r"cover none .*: its weights are not all finite"):
        Quantize().apply(empty, filling)
    assert asked == list(NAMES)
    assert not [each for each in empty if isinstance(each, Int8Linear)]
