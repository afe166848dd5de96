"""Decoding in one call of compiled code per token: what it answers, leaves behind and refuses."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from transformers import DynamicCache, StaticCache

from truthgpt_core.errors import TruthGPTError
from truthgpt_core.optimization import OptimizationContext
from truthgpt_core.plugin_system import PluginManager
from truthgpt_plugin_quantize.optimization import Quantize

SIZES: dict[str, Any] = {
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
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama, tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama, biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama, one head of keys": ("LlamaConfig", {"num_key_value_heads": 1}),
    "llama, four heads of keys": ("LlamaConfig", {"num_key_value_heads": 4}),
    "llama, wide heads": ("LlamaConfig", {"head_dim": 32}),
    "llama3 angles": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "llama, broad": (
        "LlamaConfig",
        {"hidden_size": 192, "intermediate_size": 320, "initializer_range": 0.09},
    ),
    "llama, gelu": ("LlamaConfig", {"hidden_act": "gelu_pytorch_tanh"}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
}
# What they are made of. Of int4, `down_proj` is int8: its rows are 96 weights long.
INT8: list[dict[str, Any]] = [{}, {"group_size": 0}, {"skip": "lm_head"}]
INT4: list[dict[str, Any]] = [
    {"scheme": "int4"},
    {"scheme": "int4", "group_size": 128, "layers": "lm_head=int4"},
    {"scheme": "int4", "layers": ["q_proj=none", "1.mlp=int8/0", "0.mlp.up_proj=int8"]},
]
CASES = [
    *((name, options) for name in MODELS for options in INT8),
    *((name, options) for name in ("llama, biases", "qwen3") for options in INT4),
    *(("llama, broad", options) for options in INT4),
]
PROMPT = torch.arange(3, 12).unsqueeze(0)
STEPS, PLACES = 8, 32


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def hooks() -> Any:
    """The hooks as an application has them, with this plugin."""
    manager = PluginManager()
    manager.activate("quantize")
    return manager.hooks


def plain(name: str = "llama", dtype: torch.dtype = torch.float32, **sizes: Any) -> Any:
    """Make a model whose answers are far from uniform and depend on all of its weights."""
    config, own = MODELS[name]
    made = getattr(transformers, config)(**SIZES | {"initializer_range": 0.15} | own | sizes)
    # Not in inference mode: its tensors would not count how often they are changed.
    with torch.inference_mode(False), torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_config(made).eval()
        for each in model.parameters():
            if each.dim() == 1:
                each += torch.randn_like(each) * 0.2
        return model.to(dtype)


def quantized(
    context: OptimizationContext,
    name: str = "llama",
    dtype: torch.dtype = torch.float32,
    options: dict[str, Any] | None = None,
    **sizes: Any,
) -> Any:
    """Make a model and quantize it."""
    model = plain(name, dtype, **sizes)
    with torch.inference_mode(False):
        Quantize(**options or {}).apply(model, context)
    return model


def prefilled(model: Any, prompt: torch.Tensor = PROMPT) -> Any:
    """Return a cache that holds a prompt."""
    cache = StaticCache(config=model.config, max_cache_len=PLACES)
    model(input_ids=prompt, past_key_values=cache, use_cache=True)
    return cache


def own_step(model: Any, cache: Any) -> Callable[[Any, Any], torch.Tensor]:
    """Return the step as the model itself computes it."""

    def step(token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        output = model(
            input_ids=token, position_ids=position, past_key_values=cache, use_cache=True
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    return step


def decode(step: Any, steps: int = STEPS, first: int = PROMPT.shape[1]) -> torch.Tensor:
    """Take the same tokens through a step, and return its logits, a row for each."""
    return torch.cat(
        [
            step(torch.tensor([[(7 + 5 * n) % 96]]), torch.tensor([[first + n]]))
            for n in range(steps)
        ]
    )


def divergence(expected: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Return the Kullback-Leibler divergence of each row, in nats."""
    p, q = expected.double().log_softmax(-1), given.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_answers_as_the_model_itself(
    name: str, dtype: torch.dtype, options: dict[str, Any], context: OptimizationContext, hooks: Any
) -> None:
    """Token by token the answers and the cache are the model's own, and it can go on from them."""
    model = quantized(context, name, dtype, options)
    own_cache, cache = prefilled(model), prefilled(model)
    step = hooks.make_decode_step(model=model, cache=cache)
    assert step is not None
    # The first step is the model's own as well, and leaves its own keys in the cache.
    expected, given = decode(own_step(model, own_cache)), decode(step)

    # Both round activations to 8 bits; bfloat16 keeps 8 bits of the model's own sums too,
    # and these noises are independent.
    noise = {torch.float32: 1e-3, torch.bfloat16: 1e-2}[dtype]
    assert given.dtype == dtype
    assert divergence(expected[1:], expected[:-1]).min() > 0.1, "it shows nothing"
    assert divergence(expected, given).max() < noise
    best = expected.float().topk(2).values
    clear = best[:, 0] - best[:, 1] > 4 * (expected.float() - given.float()).abs().amax(-1)
    assert clear.any()
    assert torch.equal(given.argmax(-1)[clear], expected.argmax(-1)[clear])

    for mine, theirs in zip(cache.layers, own_cache.layers, strict=True):
        assert int(mine.cumulative_length) == PROMPT.shape[1] + STEPS
        for ours, own in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
            assert ours.dtype == dtype
            assert (ours - own).abs().max() <= noise**0.5 * own.abs().max()
            assert not ours[:, :, PROMPT.shape[1] + STEPS :].any()
    after = [own_step(model, each) for each in (own_cache, cache)]
    first = PROMPT.shape[1] + STEPS
    assert divergence(*(decode(each, 2, first) for each in after)).max() < noise


def refuses(model: Any, cache: Any, hooks: Any) -> bool:
    """Return whether a model is left to others."""
    return hooks.make_decode_step(model=model, cache=cache) is None


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ("Gemma2Config", {"head_dim": 16}),
        ("MistralConfig", {"sliding_window": 8}),
        ("LlamaConfig", {"hidden_act": "relu"}),
        ("LlamaConfig", {"intermediate_size": 100}),
        (
            "LlamaConfig",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        ),
    ],
    ids=str,
)
def test_models_that_it_does_not_know_are_left_to_others(
    config: str, sizes: dict[str, Any], context: OptimizationContext, hooks: Any
) -> None:
    """Another architecture, window, activation, width or angle is not computed wrongly."""
    made = getattr(transformers, config)(**SIZES | sizes)
    model = transformers.AutoModelForCausalLM.from_config(made).eval()
    Quantize().apply(model, context)
    assert refuses(model, prefilled(model), hooks)


def test_a_model_whose_hidden_states_were_asked_for_is_still_decoded(
    context: OptimizationContext, hooks: Any
) -> None:
    """The hooks that transformers leaves in it then do nothing while it decodes."""
    made = transformers.LlamaConfig(**SIZES)
    model = transformers.AutoModelForCausalLM.from_config(made).eval()
    Quantize().apply(model, context)
    model(input_ids=torch.tensor([[3, 4]]), output_hidden_states=True)
    assert any(each._forward_hooks for each in model.modules())
    assert not refuses(model, prefilled(model), hooks)


def test_gpt2_is_left_to_others(context: OptimizationContext, hooks: Any) -> None:
    """A model of another family, though all of its layers are quantized for the kernel."""
    made = transformers.GPT2Config(
        vocab_size=96,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.AutoModelForCausalLM.from_config(made).eval()
    Quantize().apply(model, context)
    assert refuses(model, prefilled(model), hooks)


def test_other_models_than_quantized_for_it_are_left_to_others(
    context: OptimizationContext, hooks: Any
) -> None:
    """A model that is not quantized, or for another kernel, is decoded as it was asked for."""
    for model in (plain(), quantized(context, options={"kernel": "packed"})):
        assert refuses(model, prefilled(model), hooks)


def test_other_caches_are_left_to_others(context: OptimizationContext, hooks: Any) -> None:
    """A cache that grows, that is empty, or that holds two sequences."""
    model = quantized(context)
    growing = DynamicCache(config=model.config)
    model(input_ids=PROMPT, past_key_values=growing, use_cache=True)
    assert refuses(model, growing, hooks)
    assert refuses(model, StaticCache(config=model.config, max_cache_len=PLACES), hooks)
    assert refuses(model, prefilled(model, PROMPT.expand(2, -1)), hooks)
    assert not refuses(model, prefilled(model), hooks)


def test_what_someone_listens_to_is_left_to_others(
    context: OptimizationContext, hooks: Any
) -> None:
    """Forward hooks and replaced methods are called: compiled code would pass them by."""
    model = quantized(context)
    cache = prefilled(model)
    handle = model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert refuses(model, cache, hooks)
    handle.remove()
    norm = model.model.norm
    norm.forward = norm.forward
    assert refuses(model, cache, hooks)
    del norm.forward
    assert not refuses(model, cache, hooks)


def test_a_wrong_answer_is_given_once_to_nobody(
    context: OptimizationContext, hooks: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """If its first answer is not the model's own, the model's own is used from there on."""
    model = quantized(context)
    norm = type(model.model.norm)
    exact = norm.forward
    monkeypatch.setattr(norm, "forward", lambda self, x: exact(self, x).flip(-1))
    own_cache, cache = prefilled(model), prefilled(model)
    step = hooks.make_decode_step(model=model, cache=cache)
    assert torch.equal(decode(step), decode(own_step(model, own_cache)))
    assert "Compiled code is not used for this model" in caplog.text
    assert torch.equal(cache.layers[1].keys, own_cache.layers[1].keys)
    assert refuses(model, cache, hooks)


def changed_in_place(model: Any) -> None:
    model.model.norm.weight.mul_(-1)


def loaded(model: Any) -> None:
    state = {name: each.clone() for name, each in model.state_dict().items()}
    state["lm_head.scales"] *= -1
    model.load_state_dict(state, assign=True)


def converted(model: Any) -> None:
    model.to(torch.bfloat16)


@pytest.mark.parametrize("change", [changed_in_place, loaded, converted])
def test_new_weights_are_seen_by_the_next_sequence(
    change: Callable[[Any], None], context: OptimizationContext, hooks: Any
) -> None:
    """What was prepared from other weights is not used again."""
    model = quantized(context)
    before = decode(hooks.make_decode_step(model=model, cache=prefilled(model)))
    with torch.inference_mode(False), torch.no_grad():
        change(model)
    own_cache, cache = prefilled(model), prefilled(model)
    given = decode(hooks.make_decode_step(model=model, cache=cache))
    expected = decode(own_step(model, own_cache))
    assert divergence(expected, given).max() < 1e-2
    assert given.dtype != before.dtype or divergence(before, given).min() > 0.1


def other_scaling(model: Any, first: int = 0) -> None:
    for layer in model.model.layers[first:]:
        layer.self_attn.scaling *= 8


def other_epsilon(model: Any) -> None:
    for each in model.modules():
        if hasattr(each, "variance_epsilon"):
            each.variance_epsilon = 1.0


def other_angles(model: Any) -> None:
    model.model.rotary_emb.attention_scaling *= 1.5


@pytest.mark.parametrize(
    ("change", "is_known"),
    [
        (other_scaling, True),
        (other_epsilon, True),
        (other_angles, True),
        (lambda model: other_scaling(model, 1), False),
        (lambda model: setattr(model.model.layers[1].mlp, "act_fn", torch.nn.ReLU()), False),
    ],
)
def test_numbers_that_are_changed_are_seen_by_the_next_sequence(
    change: Callable[[Any], None], is_known: bool, context: OptimizationContext, hooks: Any
) -> None:
    """What is not a tensor is not taken from when the model first decoded; nor is it ignored."""
    model = quantized(context)
    before = decode(hooks.make_decode_step(model=model, cache=prefilled(model)))
    change(model)
    own_cache, cache = prefilled(model), prefilled(model)
    step = hooks.make_decode_step(model=model, cache=cache)
    assert (step is not None) == is_known
    expected = decode(own_step(model, own_cache))
    assert divergence(before, expected).max() > 1e-2, "it shows nothing"
    if step is not None:
        assert divergence(expected, decode(step)).max() < 1e-3


def test_the_number_of_threads_changes_no_bit(context: OptimizationContext, hooks: Any) -> None:
    """One, two and three threads add in the same order."""
    model = quantized(context)
    before, answers = torch.get_num_threads(), []
    cache = prefilled(model)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            decode(hooks.make_decode_step(model=model, cache=cache))
            answers.append(decode(hooks.make_decode_step(model=model, cache=cache)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_two_sequences_at_once_do_not_mix(context: OptimizationContext, hooks: Any) -> None:
    """Two threads that decode with one model get what each would get alone."""
    model = quantized(context)
    prompts = [PROMPT, PROMPT.flip(-1)]
    decode(hooks.make_decode_step(model=model, cache=prefilled(model)))
    steps = [hooks.make_decode_step(model=model, cache=prefilled(model, each)) for each in prompts]
    alone = [decode(each, 20) for each in steps]
    mixed: list[int] = []

    def work(which: int) -> None:
        for _ in range(20):
            if not torch.equal(decode(steps[which], 20), alone[which]):
                mixed.append(which)

    threads = [threading.Thread(target=work, args=(each,)) for each in (0, 1)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not mixed


@pytest.mark.parametrize(("token", "position"), [(96, 9), (-1, 9), (5, PLACES), (5, -1)])
def test_what_is_not_there_is_not_read(
    token: int, position: int, context: OptimizationContext, hooks: Any
) -> None:
    """A token or a position beyond the end is one clear error, not somebody else's memory."""
    model = quantized(context)
    step = hooks.make_decode_step(model=model, cache=prefilled(model))
    wrong = token if token not in range(96) else position
    with pytest.raises(TruthGPTError, match=f"(Token|position) {wrong} ?"):
        step(torch.tensor([[token]]), torch.tensor([[position]]))


def test_a_model_that_has_decoded_can_be_copied(context: OptimizationContext, hooks: Any) -> None:
    """Copies, also pickled ones, decode the same with weights of their own."""
    model = quantized(context)
    step = hooks.make_decode_step(model=model, cache=prefilled(model))
    decode(step)
    expected = decode(step)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        step = hooks.make_decode_step(model=twin, cache=prefilled(twin))
        decode(step)
        assert torch.equal(decode(step), expected)


def test_a_deleted_model_is_freed(context: OptimizationContext, hooks: Any) -> None:
    """What was prepared for a model goes with it, weights and all."""
    model = quantized(context)
    decode(hooks.make_decode_step(model=model, cache=prefilled(model)))
    weights = [weakref.ref(model), weakref.ref(model.lm_head.qweight)]
    del model
    gc.collect()
    assert [each() for each in weights] == [None, None]


PROCESS = """
import os, sys, torch, transformers
from transformers import StaticCache
from truthgpt_core.optimization import OptimizationContext
from truthgpt_plugin_quantize.decode_step import native_step
from truthgpt_plugin_quantize.optimization import Quantize

torch.set_num_threads(2)
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
    vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
    num_attention_heads=4, max_position_embeddings=64)).eval()
Quantize().apply(model, OptimizationContext("cpu", None))
torch.set_num_threads(1)
cache = StaticCache(config=model.config, max_cache_len=16)

def decode(step):
    with torch.inference_mode():
        for position in (1, 2, 3):
            out = step(torch.tensor([[5]]), torch.tensor([[position]]))
    return out

with torch.inference_mode():
    model(input_ids=torch.tensor([[3]]), past_key_values=cache)
torch.set_num_threads(2)
step = native_step(model, cache)
before = decode(step)
"""


@pytest.mark.parametrize(
    "script",
    [
        "",
        """
child = os.fork()
if child == 0:
    torch.set_num_threads(1)  # those of torch do not live on in a child
    old = decode(step)  # the model's own
    again = native_step(model, cache)
    decode(again)
    os._exit(0 if torch.allclose(decode(again), before, atol=1e-2) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""",
    ],
    ids=["exit", "fork"],
)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no such thing here")
def test_a_process_ends_and_forks_while_threads_wait(script: str) -> None:
    """Threads that wait for the next token neither hang nor crash a process or its child."""
    done = subprocess.run(
        [sys.executable, "-c", PROCESS + script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
