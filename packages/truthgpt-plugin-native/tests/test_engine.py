"""The engine: integers, many callers at once, and what it is given wrongly."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from native_models import CONTEXT, VOCABULARY, Int4, Int8, make_model, with_layers

from truthgpt_core.decoding import EngineOptions, GenerationError
from truthgpt_core.sources import ResolvedModel
from truthgpt_plugin_native.engine import NativeEngine, make_engine
from truthgpt_plugin_native.plugin import NativePlugin


@pytest.mark.parametrize(("kind", "group"), [(Int8, 0), (Int8, 32), (Int8, 64), (Int4, 32)])
def test_integers_cost_no_more_than_rounding_activations(
    kind: Any, group: int, ids: list[int], own_logits: Any
) -> None:
    """Their logits are some 0.001 nats from those of the same weights in float32."""
    model = with_layers(make_model("Llama"), kind, group)
    engine = make_engine(model)
    assert engine is not None
    own, given = own_logits(model, ids).log_softmax(-1), engine.prompt_logits(ids).log_softmax(-1)
    assert float((own.exp() * (own - given)).sum(-1).mean()) < 1e-3


def test_groups_that_are_not_whole_blocks_are_left_to_the_model() -> None:
    assert make_engine(with_layers(make_model("Llama"), Int8, 16)) is None


def test_the_plugin_runs_what_is_on_a_cpu(model: Any) -> None:
    """Another device, and a source without a model of PyTorch, are left to others."""
    source = ResolvedModel("model", "directory")
    plugin = NativePlugin()
    made = plugin.make_engine(source, EngineOptions(device="cpu", load=lambda: model))
    assert made is not None
    assert made.describe()["weights_bytes"] == sum(each.nbytes for each in model.parameters())
    assert plugin.make_engine(source, EngineOptions(device="cuda:0", load=lambda: model)) is None
    assert plugin.make_engine(source, EngineOptions(device="cpu")) is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda e, s: e.forward([s], [[]]), "The prompt is empty"),
        (lambda e, s: e.forward([s], [[VOCABULARY]]), f"the token {VOCABULARY}"),
        (lambda e, s: e.forward([s], [[-1]]), "the token -1"),
        (lambda e, s: e.forward([s], [[1] * 11]), "has 10 positions, and 11 are needed"),
        (lambda e, s: e.forward([s, s], [[1], [1]]), "A sequence is given twice"),
        (lambda e, s: e.open(CONTEXT + 1), f"the model holds {CONTEXT}"),
        (lambda e, s: e.crop(s, 3), "A sequence of 0 tokens cannot keep 3"),
        (lambda e, s: e.crop(s, -1), "cannot keep -1"),
        (lambda e, s: (e.close([s]), e.forward([s], [[1]])), "The sequence is closed"),
        (lambda e, s: (e.close([s]), e.close([s])), "The sequence is closed"),
        (lambda e, s: NativeEngine(e.model, torch.float32).forward([s], [[1]]), "another engine"),
    ],
)
def test_what_cannot_be_is_an_error_before_anything_is_computed(
    engine: NativeEngine, wrong: Any, message: str
) -> None:
    (state,) = engine.open(10)
    with pytest.raises(GenerationError, match=message):
        wrong(engine, state)


def test_an_error_leaves_the_other_sequences_as_they_were(
    engine: NativeEngine, ids: list[int]
) -> None:
    one, other = engine.open(20, 2)
    engine.forward([one], [ids[:5]])
    with pytest.raises(GenerationError):
        engine.forward([one, other], [ids[5:6], [VOCABULARY]])
    (logits,) = engine.forward([one], [ids[5:6]])
    assert torch.equal(logits, engine.prompt_logits(ids[:6])[-1:])


def test_threads_may_use_one_engine_at_once(engine: NativeEngine, ids: list[int]) -> None:
    """Each gets what it gets alone."""
    expected = {count: engine.prompt_logits(ids[:count]) for count in (3, 30, 300)}
    wrong: list[int] = []

    def use(count: int) -> None:
        for _ in range(5):
            if not torch.equal(engine.prompt_logits(ids[:count]), expected[count]):
                wrong.append(count)

    threads = [threading.Thread(target=use, args=(count,)) for count in (3, 30, 300) for _ in "ab"]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


FORKED = """
import os, sys, torch
sys.path.insert(0, {folder!r})
from native_models import make_model
from truthgpt_core.decoding import GenerationError
from truthgpt_plugin_native.engine import NativeEngine

torch.set_num_threads(2)
model = make_model("Llama")
engine = NativeEngine(model, torch.float32)
before = engine.prompt_logits([1, 2, 3])
child = os.fork()
if child == 0:
    torch.set_num_threads(1)  # those of torch do not live on in a fork either
    try:
        engine.prompt_logits([1, 2, 3])
    except GenerationError as error:
        assert "forked" in str(error)
        again = NativeEngine(model, torch.float32).prompt_logits([1, 2, 3])
        os._exit(0 if torch.equal(again, before) else 1)
    os._exit(2)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what a process has is asked of Linux")
def test_sequences_that_begin_alike_have_that_in_memory_once() -> None:
    """Copies of a long sequence take nothing until they grow, and stay when the first is closed."""
    engine = make_engine(make_model("Llama", hidden_size=256, num_hidden_layers=8))
    assert engine is not None
    prompt = [number % VOCABULARY for number in range(1000)]
    (first,) = engine.open(CONTEXT)
    engine.forward([first], [prompt])
    took = engine.describe()["cache_bytes_per_token"] * len(prompt)
    before = resident()
    copies = [engine.fork(first, len(prompt), CONTEXT) for _ in range(8)]
    assert resident() - before < took
    engine.close([first])
    one, other = (logits[0] for logits in engine.forward(copies[:2], [[7], [7]]))
    assert torch.equal(one, other)


def resident() -> int:
    """Bytes of this process that are of no file."""
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("RssAnon")
    )
    return int(line.split()[1]) * 1024


def test_a_fork_gets_an_error_and_can_make_an_engine_of_its_own() -> None:
    """Neither hangs: threads do not live on in a fork."""
    folder = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", FORKED.format(folder=folder)],
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_model_that_is_no_longer_used_is_freed() -> None:
    """Neither the engine nor its sequences keep it when they are gone."""
    model = make_model("Llama")
    engine = NativeEngine(model, torch.float32)
    (state,) = engine.open(10)
    engine.forward([state], [[1]])
    gone = weakref.ref(model)
    del model, engine, state
    gc.collect()
    assert gone() is None


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.usefixtures("three_threads")
def test_torch_has_its_threads_again_once_an_engine_is_made(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """They rest while a quantized or small model is compared with the code, and no longer."""
    model = with_layers(make_model("Llama"), Int8)
    dequantize, seen = Int8.dequantize, set()

    def watched(layer: Int8) -> torch.Tensor:
        seen.add(torch.get_num_threads())
        if fails:
            raise RuntimeError("the model is broken")
        return dequantize(layer)

    monkeypatch.setattr(Int8, "dequantize", watched)
    with pytest.raises(RuntimeError) if fails else nullcontext():
        make_engine(model)
    assert (seen, torch.get_num_threads()) == ({1}, 3)
