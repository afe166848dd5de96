"""Compiled decoding answers as the model did before; all else stays uncompiled."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM, StaticCache

from truthgpt_core.optimization import OptimizationContext
from truthgpt_plugin_compile.optimization import TorchCompile

LOGGER = "truthgpt_plugin_compile.compilation"
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
def test_it_is_known_whether_a_model_ran_through_it(compiled: Any) -> None:
    """Reading a prompt alone runs nothing compiled; a decode step does."""
    with torch.inference_mode():
        compiled(input_ids=PROMPT)
    assert not TorchCompile().was_used(compiled)
    decode(compiled, steps=1)
    assert TorchCompile().was_used(compiled)


@needs_compiler
def test_the_whole_model_can_be_compiled_at_once(
    eager: LlamaForCausalLM, context: OptimizationContext
) -> None:
    """The region `model` gives the same tokens from a single graph."""
    whole = TorchCompile(region="model").apply(copy.deepcopy(eager), context).model
    assert torch.equal(decode(whole)[0], decode(eager)[0])
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
    asked: dict[str, str] = {"max_new_tokens": 5, "do_sample": False}
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


@needs_compiler
def test_what_was_compiled_is_told_once(compiled: Any, notes: list[dict[str, str]]) -> None:
    """After the first compiled step a note has graphs, seconds and graph breaks; later none."""
    decode(compiled)
    decode(compiled)
    (note,) = notes
    assert note["about"] == "compiling"
    assert note["note"].startswith("Compiled 1 graph in ")
    assert "no graph breaks" in note["note"]


@needs_compiler
def test_too_many_recompilations_are_told_with_the_shape(
    eager: LlamaForCausalLM,
    context: OptimizationContext,
    notes: list[dict[str, str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Beyond the bound a warning names the input and its sizes, and new shapes run uncompiled."""
    bounded = TorchCompile(max_recompilations=0).apply(copy.deepcopy(eager), context).model
    with caplog.at_level(logging.WARNING, LOGGER):
        decode(bounded, length=16)
        assert not caplog.records
        decode(bounded, length=32)
        (warning,) = [each.getMessage() for each in caplog.records]
        assert torch.equal(decode(bounded, length=48)[0], decode(eager, length=48)[0])
    assert graphs() == 2
    assert "keys" in warning
    assert "16" in warning
    assert "32" in warning
    assert len(caplog.records) == 1
    assert "uncompiled" in notes[-1]["note"]


@pytest.mark.parametrize("region", ["blocks", "model"])
def test_where_compiling_fails_the_model_goes_on(
    region: str,
    eager: LlamaForCausalLM,
    context: OptimizationContext,
    notes: list[dict[str, str]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """If nothing can be compiled, tokens are right, and the reason is told once, in one line."""
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    there = replace(context, cache_dir=blocked / "kept")
    broken = TorchCompile(region=region).apply(copy.deepcopy(eager), there).model
    with caplog.at_level(logging.WARNING, LOGGER):
        assert torch.equal(decode(broken)[0], decode(eager)[0])
    (warning,) = [each for each in caplog.records if each.name == LOGGER]
    assert "NotADirectoryError" in warning.getMessage()
    assert "\n" not in warning.getMessage()
    assert warning.exc_info is None
    (note,) = notes
    assert "runs uncompiled" in note["note"]
    assert not TorchCompile().was_used(broken), "nothing ran compiled"


@needs_compiler
def test_an_error_of_the_model_is_the_one_seen(
    eager: LlamaForCausalLM, compiled: Any, notes: list[dict[str, str]]
) -> None:
    """What the model itself refuses, it refuses compiled too, with the same error."""
    errors = []
    for model in (eager, compiled):
        cache = StaticCache(config=model.config, max_cache_len=16)
        with torch.inference_mode():
            model(input_ids=PROMPT, past_key_values=cache)
            model.model.layers[1].mlp.down_proj = torch.nn.Linear(5, 64)
            with pytest.raises(RuntimeError) as caught:
                model(input_ids=PROMPT[:, :1], past_key_values=cache)
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]
    assert not [note for note in notes if "failed" in note["note"]]
