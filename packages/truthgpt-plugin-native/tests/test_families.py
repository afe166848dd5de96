"""Each family computes what transformers computes, in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from native_models import make_model

from truthgpt_plugin_native.engine import NativeEngine, make_engine
from truthgpt_plugin_native.reading import why_not

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}

RUN = [
    ("Llama", {}),
    ("Llama", {"num_attention_heads": 6, "num_key_value_heads": 1, "hidden_size": 60}),
    ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ("Llama", {"rope_parameters": LLAMA3}),
    ("Llama", {"rope_parameters": YARN}),
    ("Llama", {"rope_parameters": LINEAR}),
    ("Mistral", {"sliding_window": None}),
    ("Mistral", {"sliding_window": 100, "num_key_value_heads": 4}),
    ("Qwen2", {"num_attention_heads": 8, "num_key_value_heads": 8}),
    ("Qwen2", {"use_sliding_window": True, "sliding_window": 37, "max_window_layers": 1}),
    ("Qwen3", {"head_dim": 32}),
    ("Qwen3", {"head_dim": 20, "attention_bias": True, "tie_word_embeddings": True}),
    ("Gemma", {"head_dim": 32}),
    ("Gemma", {"head_dim": 16, "num_key_value_heads": 1}),
]


@pytest.mark.filterwarnings("ignore:.*RoPE.*")
@pytest.mark.parametrize(("family", "settings"), RUN)
def test_logits_are_those_of_transformers(
    family: str, settings: dict[str, Any], ids: list[int], own_logits: Any
) -> None:
    """A text of 400 tokens, beyond any window, comes out within 1e-4."""
    model = make_model(family, **settings)
    assert why_not(model) == ""
    engine = NativeEngine(model, torch.float32)
    torch.testing.assert_close(
        engine.prompt_logits(ids), own_logits(model, ids), rtol=1e-4, atol=1e-4
    )


def test_a_model_in_bfloat16_is_run_with_its_own_weights(ids: list[int], own_logits: Any) -> None:
    """Its logits are nearer to those of float32 than the rounding of the model's own sums is."""
    model = make_model("Llama").to(torch.bfloat16)
    engine = make_engine(model)
    assert engine is not None
    exact = own_logits(model.float(), ids)
    given = engine.prompt_logits(ids)
    divergence = (exact.softmax(-1) * (exact.log_softmax(-1) - given.log_softmax(-1))).sum(-1)
    assert float(divergence.mean()) < 1e-3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("hook", "it has forward hooks"),
        ("forward", "the forward of one of its modules was replaced"),
        ("layer", "model.layers.1.mlp.up_proj is a Doubled"),
        ("dtype", "it is neither in float32 nor in bfloat16"),
        ("rope", "its rotary embedding is dynamic"),
    ],
)
def test_what_it_cannot_run_as_the_model_does_is_left_to_the_model(
    change: str, reason: str
) -> None:
    """It says why, and makes no engine."""

    class Doubled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = make_model("Llama")
    mlp = model.model.layers[1].mlp
    if change == "hook":
        mlp.register_forward_hook(lambda module, given, out: out * 2)
    elif change == "forward":
        mlp.forward = lambda x: x
    elif change == "layer":
        mlp.up_proj = Doubled(64, 192, bias=False)
    elif change == "dtype":
        model.half()
    else:
        dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
        model = make_model("Llama", rope_parameters=dynamic)
    assert why_not(model) == reason
    assert make_engine(model) is None


def test_another_architecture_is_named() -> None:
    """The reason lists what can be run."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=96))
    assert why_not(model).startswith("GPT2LMHeadModel is none of GemmaForCausalLM, Llama")


def test_wrong_first_logits_leave_the_model_to_pytorch(caplog: pytest.LogCaptureFixture) -> None:
    """A change that no look at the model finds is found by its logits."""
    model = make_model("Llama")
    attention = type("Other", (type(model.model.layers[0].self_attn),), {})
    attention.forward = lambda self, *given, **named: (
        torch.zeros_like(named["hidden_states"]),
        None,
    )
    model.model.layers[0].self_attn.__class__ = attention
    assert make_engine(model) is None
    assert "the first logits of compiled code differ by" in caplog.text


def test_weights_that_are_not_finite_are_left_to_the_model() -> None:
    """Its own engine says what is wrong with it."""
    model = make_model("Llama")
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    assert make_engine(model) is None
