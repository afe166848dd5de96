"""Compiled decoding answers as the model did before; all else stays uncompiled."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM, StaticCache

PROMPT = torch.arange(3, 8).unsqueeze(0)

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler"
)


def graphs() -> int:
    """Return how many graphs were compiled since the test began."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def decode(
    model: Any, *, length: int = 16, batch: int = 1, steps: int = 6
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode greedily against a static cache; return tokens and logits of all steps."""
    cache = StaticCache(config=model.config, max_cache_len=length)
    prompt = PROMPT + torch.arange(batch).unsqueeze(1)
    tokens, seen = [], []
    with torch.inference_mode():
        positions = torch.arange(prompt.shape[1]).expand(batch, -1)
        answer = model(input_ids=prompt, position_ids=positions, past_key_values=cache)
        for step in range(steps):
            seen.append(answer.logits[:, -1])
            tokens.append(seen[-1].argmax(-1, keepdim=True))
            position = torch.full((batch, 1), prompt.shape[1] + step)
            answer = model(input_ids=tokens[-1], position_ids=position, past_key_values=cache)
    return torch.cat(tokens, dim=1), torch.stack(seen)


@needs_compiler
@pytest.mark.parametrize("batch", [1, 2])
def test_tokens_are_the_same(batch: int, eager: LlamaForCausalLM, compiled: Any) -> None:
    """Greedy tokens are equal one by one and logits closely, at any batch size."""
    tokens, logits = decode(compiled, batch=batch)
    assert graphs() == 1
    expected, close = decode(eager, batch=batch)
    assert torch.equal(tokens, expected)
    assert logits == pytest.approx(close, abs=1e-5)
    assert graphs() == 1


@needs_compiler
def test_one_model_decodes_with_caches_of_several_lengths(
    eager: LlamaForCausalLM, compiled: Any
) -> None:
    """A longer cache after a shorter one, and the shorter one again, need two compilations."""
    for length in (16, 32, 16):
        assert torch.equal(decode(compiled, length=length)[0], decode(eager, length=length)[0])
    assert graphs() == 2


@needs_compiler
def test_more_shapes_than_torch_compiles_run_uncompiled(
    eager: LlamaForCausalLM, compiled: Any
) -> None:
    """Beyond torch's limit of compilations decoding goes on, instead of failing."""
    with torch._dynamo.config.patch(recompile_limit=1):
        for length in (16, 32):
            tokens, _ = decode(compiled, length=length)
            assert torch.equal(tokens, decode(eager, length=length)[0])
    assert graphs() == 1


@needs_compiler
def test_generate_of_transformers_still_works(eager: LlamaForCausalLM, compiled: Any) -> None:
    """`generate` with a static cache uses the compiled step and gives the same tokens."""
    asked: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
    tokens = compiled.generate(PROMPT, cache_implementation="static", **asked)
    assert graphs() >= 1
    expected = eager.generate(PROMPT, cache_implementation="static", **asked)
    assert torch.equal(tokens, expected)
    assert torch.equal(compiled.generate(PROMPT, **asked), expected)


@needs_compiler
@pytest.mark.parametrize("how", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_copy_decodes_with_its_own_weights(how: Any, compiled: Any) -> None:
    """A copied or pickled model is compiled too, and never runs with the original's weights."""
    twin = how(compiled)
    with torch.no_grad():
        twin.lm_head.weight.zero_()
    assert decode(twin)[1].count_nonzero() == 0
    assert graphs() == 1
    assert decode(compiled)[1].count_nonzero() > 0


def test_reading_a_prompt_is_not_compiled(eager: LlamaForCausalLM, compiled: Any) -> None:
    """A prompt of several tokens, of any length, runs as before."""
    with torch.inference_mode():
        for tokens in (2, 5):
            ids = PROMPT[:, :tokens]
            caches = [StaticCache(config=eager.config, max_cache_len=16) for _ in range(2)]
            before = eager(input_ids=ids, past_key_values=caches[0]).logits
            assert torch.equal(compiled(input_ids=ids, past_key_values=caches[1]).logits, before)
    assert graphs() == 0


def test_a_growing_cache_is_not_compiled(eager: LlamaForCausalLM, compiled: Any) -> None:
    """With a cache that grows each step has another shape, so nothing is compiled."""
    answers = []
    for model in (eager, compiled):
        cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            model(input_ids=PROMPT, past_key_values=cache)
            answers.append(model(input_ids=PROMPT[:, :1], past_key_values=cache).logits)
    assert torch.equal(*answers)
    assert graphs() == 0


def test_no_cache_is_not_compiled(eager: LlamaForCausalLM, compiled: Any) -> None:
    """A call with a single token and no cache runs as before, positional or by name."""
    with torch.inference_mode():
        assert torch.equal(compiled(PROMPT[:, :1]).logits, eager(PROMPT[:, :1]).logits)
        assert torch.equal(compiled(input_ids=PROMPT).logits, eager(input_ids=PROMPT).logits)
    assert graphs() == 0


def test_training_is_not_compiled(eager: LlamaForCausalLM, compiled: Any) -> None:
    """A training step gives the same loss and gradients, and compiles nothing."""
    losses = []
    for model in (eager, compiled):
        model.train()
        loss = model(input_ids=PROMPT, labels=PROMPT).loss
        loss.backward()
        losses.append(loss.detach())
        cache = StaticCache(config=model.config, max_cache_len=16)
        model(input_ids=PROMPT[:, :1], past_key_values=cache)
    assert torch.equal(*losses)
    assert torch.equal(compiled.lm_head.weight.grad, eager.lm_head.weight.grad)
    assert graphs() == 0


def test_names_of_weights_stay(eager: LlamaForCausalLM, compiled: Any) -> None:
    """Checkpoints made after compiling fit the model from before, without `_orig_mod`."""
    assert list(compiled.state_dict()) == list(eager.state_dict())
    assert [name for name, _ in compiled.named_modules()] == [
        name for name, _ in eager.named_modules()
    ]
    assert type(compiled) is LlamaForCausalLM


def test_save_pretrained_works(eager: LlamaForCausalLM, compiled: Any, tmp_path: Path) -> None:
    """A compiled model is saved as an ordinary one, which transformers loads."""
    compiled.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.inference_mode():
        assert torch.equal(loaded(input_ids=PROMPT).logits, eager(input_ids=PROMPT).logits)
