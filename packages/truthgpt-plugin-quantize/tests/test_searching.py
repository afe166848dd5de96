"""`scheme=auto`: the mix keeps its bound, and trying layers leaves nothing behind."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers

from truthgpt_core.optimization import Applied, OptimizationContext, OptimizationError
from truthgpt_plugin_quantize.int4 import Int4Linear
from truthgpt_plugin_quantize.int8 import Int8Linear
from truthgpt_plugin_quantize.optimization import Quantize
from truthgpt_plugin_quantize.quantized import QuantizedLinear

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Larger than a new model's, so that its predictions depend on its weights.
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
}
TOKENS = tuple((5 + 7 * at * at) % 96 for at in range(40))


@pytest.fixture
def text(context: OptimizationContext) -> OptimizationContext:
    """A context with tokens to try layers on."""
    return replace(context, tokens=TOKENS)


def llama(**sizes: Any) -> Any:
    """Make a model with random weights; the rows of `down_proj` are too odd for int4."""
    config = transformers.LlamaConfig(**SIZES | sizes)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def auto(model: Any, context: OptimizationContext, **options: Any) -> Applied:
    """Apply `scheme=auto`."""
    return Quantize(**{"scheme": "auto"} | options).apply(model, context)


def predictions(model: Any) -> torch.Tensor:
    """Return log-probabilities for the text, in float64."""
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([TOKENS])).logits[0]
    return logits.double().log_softmax(-1)


def divergence(before: torch.Tensor, model: Any) -> float:
    """Return the mean KL divergence of a model from what it predicted before, in nats."""
    return float((before.exp() * (before - predictions(model))).sum(-1).mean())


def size(model: Any) -> int:
    """Return the bytes of all weights."""
    return sum(each.nbytes for each in model.state_dict().values())


def weights(model: Any) -> dict[str, torch.Tensor]:
    """Return copies of all tensors by name."""
    return {name: each.detach().clone() for name, each in model.state_dict().items()}


@pytest.mark.parametrize("bound", [0.0003, 0.003, 0.03])
def test_the_result_keeps_the_bound(bound: float, text: OptimizationContext) -> None:
    """The mean KL divergence on the text that it was tried on is at most what was allowed."""
    model = llama()
    before = predictions(model)
    applied = auto(model, text, max_kl=bound)
    found = divergence(before, model)
    # It was measured in float32.
    assert 0 < found <= bound * 1.001 + 1e-6
    (note,) = [each for each in applied.notes if f"KL divergence of {bound:g} measures" in each]
    assert float(note.partition("measures ")[2].split()[0]) == pytest.approx(found, abs=1e-4)


def test_the_bound_it_is_judged_by_holds_if_none_was_said(text: OptimizationContext) -> None:
    """What `truthgpt optimize` will judge the model by is what the mix is found for."""
    asked = auto(llama_of(3), text, max_kl=0.002)
    judged = auto(llama_of(3), replace(text, max_kl=0.002))
    assert judged.choices == asked.choices
    assert "KL divergence of 0.002 measures" in " ".join(judged.notes)


def llama_of(seed: int) -> Any:
    """Make a model that is the same each time."""
    torch.manual_seed(seed)
    return llama()


def test_a_smaller_bound_never_gives_a_smaller_model(text: OptimizationContext) -> None:
    """What is allowed to cost less is at least as large."""
    sizes = []
    for bound in (1e-4, 1e-3, 1e-2, 1.0):
        model = llama_of(0)
        auto(model, text, max_kl=bound)
        sizes.append(size(model))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_a_huge_bound_gives_int4_wherever_it_fits(text: OptimizationContext) -> None:
    """The output embedding too: it is measured like any other layer."""
    model = llama()
    applied = auto(model, text, max_kl=1e6)
    kinds = {name: type(each) for name, each in model.named_modules() if _counts(each)}
    odd = {name for name in kinds if name.endswith("down_proj")}
    assert {name for name, kind in kinds.items() if kind is Int8Linear} == odd
    assert {name for name, kind in kinds.items() if kind is Int4Linear} == kinds.keys() - odd
    assert kinds["lm_head"] is Int4Linear
    assert len(applied.coverage.covered) == len(kinds) == 15


def _counts(module: Any) -> bool:
    return isinstance(module, QuantizedLinear | torch.nn.Linear)


def test_a_bound_that_few_layers_keep_leaves_the_others_alone(text: OptimizationContext) -> None:
    """They stay in floating point, bit for bit, and the report names each."""
    model = llama()
    before = weights(model)
    coverage = auto(model, text, max_kl=1e-5).coverage
    assert coverage.covered
    assert coverage.skipped
    for name, reason in coverage.skipped:
        assert reason == f"layers=={name}=none"
        assert torch.equal(model.get_submodule(name).weight, before[f"{name}.weight"])


@pytest.mark.parametrize("tied", [False, True])
def test_a_bound_that_no_layer_keeps_is_refused_and_nothing_is_changed(
    tied: bool, text: OptimizationContext
) -> None:
    """Trying layers leaves no trace: the same modules, tensors, ties and answers."""
    model = llama(tie_word_embeddings=tied)
    before, modules = weights(model), dict(model.named_modules())
    parameters = dict(model.named_parameters())
    answer = predictions(model)
    with pytest.raises(OptimizationError, match=r"no layer .* within a KL divergence of 1e-15"):
        auto(model, text, max_kl=1e-15)
    assert dict(model.named_modules()) == modules
    assert {name: id(each) for name, each in model.named_parameters()} == {
        name: id(each) for name, each in parameters.items()
    }
    assert not [each for each in model.modules() if each._forward_hooks or "forward" in vars(each)]
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
    for name, each in model.state_dict().items():
        assert torch.equal(each, before[name])
    assert torch.equal(predictions(model), answer)


@pytest.mark.parametrize("tokens", [(), TOKENS[:3]])
def test_without_a_text_there_is_one_clear_error(
    tokens: tuple[int, ...], context: OptimizationContext
) -> None:
    """It says what is missing and how to give it, and the model is as it was."""
    model = llama()
    before = weights(model)
    with pytest.raises(OptimizationError, match="tries layers on a text") as caught:
        auto(model, replace(context, tokens=tokens))
    assert caught.value.hint is not None
    assert "truthgpt optimize" in caught.value.hint
    for name, each in model.state_dict().items():
        assert torch.equal(each, before[name])


def test_a_model_that_predicts_no_numbers_is_refused(text: OptimizationContext) -> None:
    """Nothing can be compared with NaN, and the error says that it is the model's own."""
    model = llama()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(OptimizationError, match="own predictions are not finite"):
        auto(model, text)


def test_choices_name_every_layer_that_was_tried(text: OptimizationContext) -> None:
    """The report can draw what each was made of, and how sensitive the model is to it."""
    model = llama()
    applied = auto(model, text, max_kl=0.001)
    chosen = {each.name: each.choice for each in applied.choices}
    covered = set(applied.coverage.covered)
    assert covered <= chosen.keys()
    assert chosen.keys() - covered == {name for name, _ in applied.coverage.skipped}
    for name in covered:
        layer = model.get_submodule(name)
        assert chosen[name] == f"{layer.scheme}/{layer.group_size}"
    assert all(each.divergence > 0 for each in applied.choices)


@pytest.mark.parametrize("bound", [0.0003, 0.003])
def test_what_was_found_is_restored_bit_for_bit(bound: float, text: OptimizationContext) -> None:
    """Settings say the mix and not `auto`: a reload searches nothing, and needs no text."""
    model = llama(tie_word_embeddings=True)
    applied = auto(model, text, max_kl=bound)
    before = predictions(model)
    settings = json.loads(json.dumps(applied.settings))
    fresh = Quantize(**settings).restore(llama(tie_word_embeddings=True), replace(text, tokens=()))
    fresh.load_state_dict(weights(model), assign=True)
    fresh.tie_weights()
    assert settings["scheme"] != "auto"
    assert torch.equal(predictions(fresh), before)


def test_the_same_model_and_text_give_the_same_mix(text: OptimizationContext) -> None:
    """Nothing is drawn by chance."""
    model = llama()
    twin = copy.deepcopy(model)
    assert auto(model, text).choices == auto(twin, text).choices
    assert weights(model).keys() == weights(twin).keys()


def test_an_input_embedding_that_is_kept_keeps_its_weights(text: OptimizationContext) -> None:
    """Trying the output embedding, which shares them, changes no bit of what goes in."""
    model = llama(tie_word_embeddings=True)
    embedding = model.get_input_embeddings().weight.detach().clone()
    applied = auto(model, text, max_kl=0.1, embedding="keep")
    assert "lm_head" in applied.coverage.covered
    assert torch.equal(model.get_input_embeddings().weight, embedding)
    assert model.config.tie_word_embeddings is False


def test_rules_hold_whatever_is_found(text: OptimizationContext) -> None:
    """Layers that a rule is about are not tried, and become what it says."""
    model = llama()
    rules = ["lm_head=none", "q_proj=int8-dynamic", "0.mlp.up_proj=int8/64"]
    applied = auto(model, text, max_kl=1e6, layers=rules)
    assert ("lm_head", "layers=lm_head=none") in applied.coverage.skipped
    first, second = model.model.layers
    assert {each.self_attn.q_proj.scheme for each in (first, second)} == {"int8-dynamic"}
    assert (first.mlp.up_proj.scheme, first.mlp.up_proj.group_size) == ("int8", 64)
    assert second.mlp.up_proj.scheme == "int4"


def test_layers_that_keep_their_weights_transposed_are_tried_too(
    text: OptimizationContext,
) -> None:
    """GPT-2's are made of the mix like any other, within the bound."""
    config = transformers.GPT2Config(
        vocab_size=96,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.1,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    before = predictions(model)
    applied = auto(model, text, max_kl=0.003)
    assert "transformer.h.0.attn.c_attn" in {each.name for each in applied.choices}
    assert 0 < divergence(before, model) <= 0.003 * 1.001
