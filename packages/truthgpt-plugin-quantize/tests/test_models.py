"""Tiny models of many architectures: applied, saved in memory, restored."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers

from truthgpt_core.optimization import OptimizationContext, OptimizationError
from truthgpt_plugin_quantize.int8 import Int8Linear
from truthgpt_plugin_quantize.optimization import Quantize

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2_SIZES = {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
EXPERTS = {"num_experts_per_tok": 2}
SHARED = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}

# Name, configuration, its settings, linear layers covered, modules skipped.
ZOO: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "llama": ("LlamaConfig", SIZES | {"tie_word_embeddings": False}, 15, 0),
    "llama, tied": ("LlamaConfig", SIZES | {"tie_word_embeddings": True}, 15, 0),
    "llama, odd": ("LlamaConfig", SIZES | {"intermediate_size": 100}, 15, 0),
    "qwen2": ("Qwen2Config", SIZES, 15, 0),
    "gemma2": ("Gemma2Config", SIZES | {"head_dim": 16}, 15, 0),
    "phi3": ("Phi3Config", SIZES, 9, 0),
    "mistral": ("MistralConfig", SIZES, 15, 0),
    "mixtral": ("MixtralConfig", SIZES | EXPERTS | {"num_local_experts": 3}, 9, 2),
    "qwen2 moe": ("Qwen2MoeConfig", SIZES | EXPERTS | SHARED | {"num_experts": 3}, 17, 2),
    "gpt2": ("GPT2Config", GPT2_SIZES | {"bos_token_id": 1, "eos_token_id": 2}, 9, 0),
}
IDS = torch.arange(3, 27).view(2, 12)

RECIPES: dict[str, dict[str, Any]] = {
    "int8": {},
    "int4": {"scheme": "int4", "layers": "lm_head=int4"},
    "int8-dynamic": {"scheme": "int8-dynamic"},
    "a mix": {
        "scheme": "int4",
        "group_size": 64,
        "layers": ["q_proj=none", "c_attn=none", "0=int8-dynamic", "1.mlp=int8/48"],
    },
}


def make(name: str) -> Any:
    """Make a model of the zoo, with random weights."""
    config, sizes, _, _ = ZOO[name]
    made = getattr(transformers, config)(**sizes)
    return transformers.AutoModelForCausalLM.from_config(made).eval()


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    """Return what a model answers."""
    with torch.inference_mode():
        answer: torch.Tensor = model(input_ids=ids).logits
    return answer


def spread(model: Any, before: torch.Tensor, ids: torch.Tensor = IDS) -> float:
    """Return how far the answers are from `before`, in parts of their own spread."""
    return float((logits(model, ids) - before).std() / before.std())


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("kernel", ["native", "packed", "packed-bfloat16", "dequantize"])
def test_answers_stay_close(name: str, kernel: str, context: OptimizationContext) -> None:
    """Quantized, every architecture answers nearly as before, for a text and for one token."""
    model = make(name)
    before, one = logits(model), logits(model, IDS[:1, :1])
    Quantize(kernel=kernel).apply(model, context)
    assert 0 < spread(model, before) < 0.05
    assert 0 < spread(model, one, IDS[:1, :1]) < 0.05


@pytest.mark.parametrize("name", ZOO)
def test_all_its_layers_are_accounted_for(name: str, context: OptimizationContext) -> None:
    """Linear layers are covered, transposed ones too; stacked experts are named as skipped."""
    _, _, covered, skipped = ZOO[name]
    model = make(name)
    coverage = Quantize().apply(model, context).coverage
    assert len(coverage.covered) == covered
    assert len(coverage.skipped) == skipped
    assert all(reason for _, reason in coverage.skipped)
    assert "lm_head" in coverage.covered
    assert isinstance(model.get_output_embeddings(), Int8Linear)


@pytest.mark.parametrize("name", ["llama", "qwen2 moe", "gpt2"])
@pytest.mark.parametrize(("scheme", "far"), [("int4", 0.25), ("int8-dynamic", 0.05), ("fp8", 0.1)])
def test_answers_of_other_schemes_stay_near(
    scheme: str, far: float, name: str, context: OptimizationContext
) -> None:
    """Fewer bits move answers further, and no scheme makes others of them."""
    model = make(name)
    before, one = logits(model), logits(model, IDS[:1, :1])
    Quantize(scheme=scheme).apply(model, context)
    assert 0 < spread(model, before) < far
    assert 0 < spread(model, one, IDS[:1, :1]) < far


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_saved_gives_the_same_answers(
    recipe: str, name: str, context: OptimizationContext
) -> None:
    """A fresh model, restored with the settings and given the weights, answers bit for bit."""
    model = make(name)
    applied = Quantize(**RECIPES[recipe]).apply(model, context)
    before, one = logits(model), logits(model, IDS[:1, :1])
    state = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}

    fresh = make(name)
    # As they are in `truthgpt.json`.
    settings = json.loads(json.dumps(applied.settings))
    restored = Quantize(**settings).restore(fresh, context)
    restored.load_state_dict(state, assign=True)
    restored.tie_weights()
    assert torch.equal(logits(restored.eval()), before)
    assert torch.equal(logits(restored, IDS[:1, :1]), one)


def test_a_refused_layer_is_the_same_after_restoring(context: OptimizationContext) -> None:
    """A layer with a NaN keeps its own weights, and others that are named like it do not."""
    model = torch.nn.ModuleDict(
        {
            "up": torch.nn.Linear(32, 32),
            "block": torch.nn.ModuleDict({"up": torch.nn.Linear(32, 32)}),
        }
    )
    fresh = torch.nn.ModuleDict(
        {
            "up": torch.nn.Linear(32, 32),
            "block": torch.nn.ModuleDict({"up": torch.nn.Linear(32, 32)}),
        }
    )
    with torch.no_grad():
        model["up"].weight[0, 0] = float("nan")
    applied = Quantize().apply(model, context)
    assert applied.coverage.covered == ("block.up",)
    Quantize(**applied.settings).restore(fresh, context)
    fresh.load_state_dict(model.state_dict(), assign=True)
    x = torch.randn(1, 32)
    assert torch.equal(fresh["block"]["up"](x), model["block"]["up"](x))
    assert torch.equal(fresh["up"].weight, model["up"].weight) is False  # NaN is not itself
    assert torch.equal(fresh["up"](x)[0, 1:], model["up"](x)[0, 1:])


def test_settings_say_what_was_chosen(context: OptimizationContext) -> None:
    """`auto` is resolved in the settings, so another machine computes the same way."""
    applied = Quantize().apply(make("llama"), context)
    assert applied.settings["kernel"] == "native"
    assert applied.settings["group_size"] == 32
    assert applied.notes == ("kernel native",)


def test_without_a_plugin_that_multiplies_whole_channels_are_chosen(
    alone: OptimizationContext, caplog: pytest.LogCaptureFixture
) -> None:
    """`auto` is what aten has for this CPU, and a warning says what would be faster."""
    applied = Quantize().apply(make("llama"), alone)
    assert "pip install truthgpt-plugin-native" in caplog.text
    assert applied.settings["kernel"] in ("packed", "packed-bfloat16")
    assert applied.settings["group_size"] == 0
    assert applied.notes == (f"kernel {applied.settings['kernel']}",)


def test_groups_that_no_plugin_multiplies_are_computed_in_floating_point(
    alone: OptimizationContext,
) -> None:
    """Who asks for groups gets them, and the kernel that can read them."""
    applied = Quantize(group_size=32).apply(make("llama"), alone)
    assert applied.settings["kernel"] == "dequantize"
    assert applied.settings["group_size"] == 32


def test_asking_for_what_no_plugin_has_is_refused(alone: OptimizationContext) -> None:
    """`kernel=native` is refused before anything is changed, and the error says what to do."""
    model = make("llama")
    with pytest.raises(OptimizationError, match=r"kernel native.*pip install.*kernel=auto"):
        Quantize(kernel="native").apply(model, alone)
    assert not [each for each in model.modules() if isinstance(each, Int8Linear)]


@pytest.mark.parametrize("kernel", ["packed", "packed-bfloat16"])
def test_groups_with_a_kernel_that_has_none_are_refused(
    kernel: str, context: OptimizationContext
) -> None:
    """The error names both options, and says which of them to change."""
    with pytest.raises(OptimizationError, match=f"{kernel} wants whole channels") as caught:
        Quantize(kernel=kernel, group_size=64).apply(make("llama"), context)
    assert "group_size is 64" in caught.value.message
    assert caught.value.hint == "Say group_size=0, or kernel=native."


def test_what_was_made_with_a_plugin_is_read_without(
    context: OptimizationContext, alone: OptimizationContext, caplog: pytest.LogCaptureFixture
) -> None:
    """Restored where none multiplies integers, a model answers nearly as where it was made."""
    model = make("llama")
    applied = Quantize().apply(model, context)
    one = logits(model, IDS[:1, :1])

    fresh = make("llama")
    restored = Quantize(**applied.settings).restore(fresh, alone)
    assert "pip install truthgpt-plugin-native" in caplog.text
    restored.load_state_dict(model.state_dict())
    assert restored.lm_head.kernel == "dequantize"
    assert spread(restored, one, IDS[:1, :1]) < 0.02


def test_restoring_computes_nothing(context: OptimizationContext) -> None:
    """A model whose weights are still on the meta device can be restored."""
    with torch.device("meta"):
        model = make("llama")
    Quantize(kernel="packed").restore(model, context)
    assert {each.device.type for each in model.parameters()} == {"meta"}
    assert isinstance(model.lm_head, Int8Linear)


@pytest.mark.parametrize("scheme", ["int8", "int4", "int8-dynamic", "fp8"])
def test_tied_embeddings_go_on_sharing_their_weights(
    scheme: str, context: OptimizationContext
) -> None:
    """What goes in are rows of the quantized output embedding, which is stored once."""
    model = make("llama, tied")
    exact = model.lm_head.weight.detach().clone()
    Quantize(scheme=scheme, layers=f"lm_head={scheme}").apply(model, context)
    rows = model.get_input_embeddings()(IDS)
    assert torch.equal(rows, model.lm_head.dequantize()[IDS])
    assert 0 < (rows - exact[IDS]).abs().max() < 0.1 * exact.abs().max()
    assert not [name for name in model.state_dict() if "embed_tokens" in name]


def test_a_tied_output_embedding_is_untied_if_the_input_embedding_is_kept(
    context: OptimizationContext,
) -> None:
    """The input embedding keeps its weights, and transformers does not tie the two again."""
    model = make("llama, tied")
    embedding = model.get_input_embeddings().weight.detach().clone()
    Quantize(embedding="keep").apply(model, context)
    before = logits(model)
    model.tie_weights()
    assert torch.equal(model.get_input_embeddings().weight, embedding)
    assert torch.equal(logits(model), before)
    assert model.config.tie_word_embeddings is False


def test_a_skipped_output_embedding_stays_tied(context: OptimizationContext) -> None:
    """With `skip=lm_head` the two embeddings go on sharing their weights."""
    model = make("llama, tied")
    Quantize(skip="lm_head").apply(model, context)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.config.tie_word_embeddings is True


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_models_of_half_the_width_work(
    name: str, dtype: torch.dtype, context: OptimizationContext
) -> None:
    """bfloat16 and float16 models keep their dtype and answer nearly as before."""
    model = make(name).to(dtype)
    before = logits(model)
    Quantize().apply(model, context)
    assert logits(model).dtype == dtype
    assert spread(model, before) < 0.05


def test_gradients_flow_through_a_quantized_model(context: OptimizationContext) -> None:
    """What is left in floating point can be trained, a single token at a time too."""
    model = make("llama")
    Quantize().apply(model, context)
    model(input_ids=IDS[:1, :2], labels=IDS[:1, :2]).loss.backward()
    gradient = model.get_input_embeddings().weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_layers_whose_weights_a_model_reads_itself_can_be_skipped(
    context: OptimizationContext,
) -> None:
    """Mamba reads the weights of `dt_proj` and `lm_head` itself; with them skipped it works."""
    config = transformers.MambaConfig(
        vocab_size=96, hidden_size=64, num_hidden_layers=2, state_size=8
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    before = logits(model)
    coverage = Quantize(skip=["dt_proj", "lm_head"]).apply(model, context).coverage
    assert spread(model, before) < 0.05
    assert len(coverage.skipped) == 3
