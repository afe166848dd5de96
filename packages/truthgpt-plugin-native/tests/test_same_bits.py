"""A token has the same logits, bit for bit, alone, in a prompt, and beside other sequences."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_models import Int4, Int8, make_model, with_layers

from truthgpt_plugin_native.engine import NativeEngine

KINDS: dict[str, Callable[[], tuple[Any, torch.dtype]]] = {
    "float32": lambda: (make_model("Llama"), torch.float32),
    "bfloat16": lambda: (make_model("Qwen2").to(torch.bfloat16), torch.bfloat16),
    "int8": lambda: (with_layers(make_model("Llama"), Int8), torch.bfloat16),
    "int8 in groups": lambda: (with_layers(make_model("Llama"), Int8, 32), torch.float32),
    "int4": lambda: (with_layers(make_model("Llama"), Int4, 32), torch.bfloat16),
    "a window": lambda: (make_model("Mistral", sliding_window=50), torch.float32),
    "an int8 cache": lambda: (make_model("Llama"), torch.int8),
    "an int8 cache and a window": lambda: (
        make_model("Mistral", sliding_window=51, head_dim=72),
        torch.int8,
    ),
}


@pytest.fixture(scope="module", params=list(KINDS))
def case(request: pytest.FixtureRequest, ids: list[int]) -> tuple[NativeEngine, torch.Tensor]:
    """An engine, and the logits of the text read whole."""
    engine = NativeEngine(*KINDS[request.param]())
    return engine, engine.prompt_logits(ids)


def parts(ids: list[int], chance: random.Random) -> Iterator[list[int]]:
    """Cut a text into parts of very different lengths."""
    at = 0
    while at < len(ids):
        count = chance.choice([1, 1, 2, 3, 5, 17, 129, 300])
        yield ids[at : at + count]
        at += count


def test_token_by_token(case: tuple[NativeEngine, torch.Tensor], ids: list[int]) -> None:
    engine, whole = case
    (state,) = engine.open(len(ids))
    found = [engine.forward([state], [[token]])[0] for token in ids]
    assert torch.equal(torch.cat(found), whole)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_in_parts_of_any_lengths(
    case: tuple[NativeEngine, torch.Tensor], ids: list[int], seed: int
) -> None:
    engine, whole = case
    (state,) = engine.open(len(ids))
    cut = parts(ids, random.Random(seed))
    found = [engine.forward([state], [part], all_logits=True)[0] for part in cut]
    assert torch.equal(torch.cat(found), whole)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(2, 17))
def test_beside_others_that_come_and_go(
    case: tuple[NativeEngine, torch.Tensor], ids: list[int], seed: int, count: int
) -> None:
    """Each step takes some of the sequences, each a different number of tokens on."""
    engine, whole = case
    chance = random.Random(seed)
    states = engine.open(len(ids), count)
    left = [list(parts(ids, chance)) for _ in states]
    found: list[list[torch.Tensor]] = [[] for _ in states]
    while any(left):
        taking = [number for number in range(count) if left[number] and chance.random() < 0.7]
        if not taking:
            continue
        chance.shuffle(taking)
        given = [left[number].pop(0) for number in taking]
        logits = engine.forward([states[number] for number in taking], given, all_logits=True)
        for number, each in zip(taking, logits, strict=True):
            found[number].append(each)
    engine.close(states)
    assert all(torch.equal(torch.cat(each), whole) for each in found)


def test_the_last_logits_are_the_last_of_all(
    case: tuple[NativeEngine, torch.Tensor], ids: list[int]
) -> None:
    engine, whole = case
    states = engine.open(len(ids), 2)
    logits = engine.forward(states, [ids, ids[:7]])
    assert torch.equal(torch.cat(logits), whole[[len(ids) - 1, 6]])


def test_after_tokens_were_taken_back(
    case: tuple[NativeEngine, torch.Tensor], ids: list[int]
) -> None:
    engine, whole = case
    (state,) = engine.open(len(ids))
    engine.forward([state], [[*ids[:200], 5, 6, 7]])
    engine.crop(state, 200)
    (logits,) = engine.forward([state], [ids[200:]], all_logits=True)
    assert torch.equal(logits, whole[200:])


def test_with_any_number_of_threads(ids: list[int]) -> None:
    model = make_model("Llama")
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(NativeEngine(model, torch.float32).prompt_logits(ids))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
