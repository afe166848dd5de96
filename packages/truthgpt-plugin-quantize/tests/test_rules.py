"""What the user may say about single layers, and how what is wrong is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from truthgpt_core.optimization import OptimizationContext, OptimizationError
from truthgpt_plugin_quantize.int4 import Int4Linear
from truthgpt_plugin_quantize.optimization import Quantize
from truthgpt_plugin_quantize.quantized import QuantizedLinear

NAMES = ("0.query", "0.up", "1.query", "1.up", "up")


class Model(nn.ModuleDict):
    """Two blocks of two layers, and an output embedding called `up` like a layer of each."""

    def __init__(self) -> None:
        super().__init__()
        for block in ("0", "1"):
            self[block] = nn.ModuleDict(
                {"query": nn.Linear(128, 64), "up": nn.Linear(128, 64, bias=False)}
            )
        self["up"] = nn.Linear(128, 96)

    def get_output_embeddings(self) -> nn.Module:
        """Name it as models of transformers do."""
        return self["up"]


def made_of(context: OptimizationContext, **options: Any) -> list[str]:
    """Apply, and return what each of `NAMES` was made of."""
    model = Model()
    Quantize(**options).apply(model, context)
    return [described(model.get_submodule(name)) for name in NAMES]


def described(module: nn.Module) -> str:
    """Return a layer's scheme as options write it."""
    if not isinstance(module, QuantizedLinear):
        return "none"
    return f"{module.scheme}/{module.group_size}"


def test_the_first_rule_that_matches_holds(context: OptimizationContext) -> None:
    """A rule for all layers at the end is for those that none before it is about."""
    layers = ["0.up=int8/64", "up=int4", "*=int8-dynamic"]
    found = made_of(context, layers=layers, kernel="native")
    assert found == ["int8-dynamic/0", "int8/64", "int8-dynamic/0", "int4/32", "int4/32"]
    assert made_of(context, layers=layers[::-1]) == ["int8-dynamic/0"] * 5


def test_layers_that_no_rule_is_about_are_what_scheme_says(context: OptimizationContext) -> None:
    """A rule changes its own layers; groups that the user named hold for what the user named."""
    found = made_of(context, scheme="int4", group_size=64, layers="query=int8", kernel="native")
    assert found == ["int8/64", "int4/64", "int8/64", "int4/64", "int8/32"]


def test_an_exact_name_is_one_layer(context: OptimizationContext) -> None:
    """`up` is every layer that is called so, `=up` only the one whose whole name it is."""
    assert made_of(context, layers="=up=none", group_size=0)[1::2] == ["int8/0"] * 2
    assert made_of(context, layers="=up=none")[-1] == "none"
    assert made_of(context, layers="up=none", group_size=0)[1:] == [
        *("none", "int8/0", "none", "none"),
    ]


def test_a_layer_that_a_rule_leaves_alone_is_named_with_the_rule(
    context: OptimizationContext,
) -> None:
    """The report says which rule it was, and `skip` wins over rules."""
    quantize = Quantize(layers=["0.up=none", "1.query=int4"], skip="query")
    coverage = quantize.apply(Model(), context).coverage
    assert dict(coverage.skipped) == {
        "0.query": "skip=query",
        "0.up": "layers=0.up=none",
        "1.query": "skip=query",
    }


def test_a_mapping_is_rules_in_its_order(context: OptimizationContext) -> None:
    """In YAML, `layers: {up: int4/64}` is the same as `layers=up=int4/64` on a command line."""
    said = {"1.up": "none", "up": "int4/64", "*": "int8-dynamic"}
    listed = [f"{pattern}={scheme}" for pattern, scheme in said.items()]
    assert Quantize(layers=said).options == Quantize(layers=listed).options
    found = made_of(context, layers=said)
    assert found == ["int8-dynamic/0", "int4/64", "int8-dynamic/0", "none", "int4/64"]


def test_the_output_embedding_is_int8_unless_a_rule_says_otherwise(
    context: OptimizationContext,
) -> None:
    """It costs more than other layers at 4 bits, so it is made of them only if the user says so."""
    model = Model()
    applied = Quantize(scheme="int4", kernel="native").apply(model, context)
    assert described(model["up"]) == "int8/32"
    assert "1 layer: the output embedding is int8, unless layers says otherwise" in applied.notes
    asked = Model()
    notes = Quantize(scheme="int4", layers="=up=int4").apply(asked, context).notes
    assert isinstance(asked["up"], Int4Linear)
    assert not [each for each in notes if "embedding" in each]


@pytest.mark.parametrize("group_size", [0, 16, 48])
def test_groups_that_int4_does_not_have_are_for_the_others(
    group_size: int, context: OptimizationContext
) -> None:
    """`group_size` may be what only int8 has: a rule with int4 then takes its own."""
    found = made_of(context, group_size=group_size, layers="query=int4", kernel="dequantize")
    assert found[0] == found[2] == "int4/32"
    # Of 128 neighbors, 48 are no whole part.
    assert found[1] == f"int8/{0 if 128 % (group_size or 1) else group_size}"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": "lm_head=int5"}, ['there is no scheme "int5"', 'Did you mean "int']),
        ({"layers": "lm_head=gguf"}, ['"gguf"', "Known: int8, int8-dynamic, int4, fp8"]),
        ({"layers": "lm_head"}, ['"lm_head" is not written PATTERN=SCHEME']),
        ({"layers": "=int4"}, ['"=int4" is not written PATTERN=SCHEME']),
        ({"layers": "up=int4/48"}, ["int4 has groups of 32, 64, 128, not of 48"]),
        ({"layers": "up=int4/few"}, ['"few" in "int4/few" is not a number']),
        ({"layers": "up=int8-dynamic/32"}, ["int8-dynamic has no groups"]),
        ({"layers": ["up=int8", "up=int3"]}, ['there is no scheme "int3"']),
        ({"layers": {"up": "int3"}}, ['there is no scheme "int3"']),
        ({"scheme": "int4", "group_size": 48}, ["int4 has groups of 32, 64, 128, not of 48"]),
        ({"scheme": "int4", "group_size": 0}, ["int4 has groups of 32, 64, 128, not of 0"]),
        ({"max_kl": 0}, ['"max_kl"', "greater than 0"]),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_before_any_model_is_loaded(
    options: dict[str, Any], said: list[str]
) -> None:
    """One error names what is wrong and what there is instead."""
    with pytest.raises(OptimizationError) as caught:
        Quantize(**options)
    for part in said:
        assert part in str(caught.value)


@pytest.mark.parametrize("options", [{"scheme": "fp8"}, {"layers": "up=fp8"}], ids=str)
def test_float8_is_refused_where_nothing_multiplies_it(options: dict[str, Any]) -> None:
    """A CPU has no arithmetic for it; the reason comes with what to use instead."""
    verdict = Quantize(**options).check("cpu")
    assert not verdict.ok
    assert "cpu has no arithmetic for 8-bit floating point" in verdict.reason
    assert verdict.fix == "Use scheme=int8."
    assert Quantize(layers="up=int4").check("cpu").ok


def test_what_was_said_is_in_the_settings(context: OptimizationContext) -> None:
    """A model is restored by the same rules, and by what was found out when it was made."""
    model = Model()
    with torch.no_grad():
        model["0"]["up"].weight[0, 0] = 1e6
        model["1"]["up"].weight[0, 0] = float("nan")
    quantize = Quantize(scheme="int4", layers=["query=int4/64"], kernel="native")
    applied = quantize.apply(model, context)
    fresh = Quantize(**applied.settings).restore(Model(), context)
    expected = ["int4/64", "int8/32", "int4/64", "none", "int8/32"]
    for each in (model, fresh):
        assert [described(each.get_submodule(name)) for name in NAMES] == expected
