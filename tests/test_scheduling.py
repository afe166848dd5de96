"""Thousands of requests in many threads, on real engines: each ends once, with its own text."""

from __future__ import annotations

import random
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from truthgpt_core import PluginManager
from truthgpt_core.decoding import Engine
from truthgpt_services import InferenceService, ModelService
from truthgpt_services.inference.engine import TorchEngine
from truthgpt_services.inference.scheduler import QueueFullError

THREADS, EACH, KINDS = 8, 60, 40
ENDS = {"eos_token", "length", "stop_sequence", "cancelled", "timeout"}


@pytest.fixture
def plugins() -> PluginManager:
    return PluginManager()


@pytest.fixture(params=["native", "torch"])
def engine(request: pytest.FixtureRequest, tiny_model: Path, plugins: PluginManager) -> Engine:
    model = ModelService().load_model(str(tiny_model), {"device": "cpu"})
    if request.param == "torch":
        return TorchEngine(model, plugins.hooks)
    from truthgpt_plugin_native.engine import make_engine

    made = make_engine(model)
    assert made is not None
    return made


@pytest.mark.campaign(cases=2)
@pytest.mark.parametrize("seed", range(11))
def test_requests_of_all_kinds_end_once_with_their_own_text(
    engine: Engine, tiny_model: Path, plugins: PluginManager, seed: int
) -> None:
    """On `native` to the letter; on PyTorch where rounding does not decide between two tokens."""
    tokenizer = ModelService().load_tokenizer(str(tiny_model))
    kinds = list(_kinds(random.Random(seed)))
    service = _service(plugins, engine, tokenizer)
    alone = [_whole(service, *kind) for kind in kinds]
    found: list[tuple[int, Any, str, bool]] = []

    def ask(thread: int) -> None:
        rng = random.Random(f"{seed} {thread}")
        for _ in range(EACH):
            kind = rng.randrange(KINDS)
            prompt, options = kinds[kind]
            try:
                stream = service.stream(
                    prompt,
                    options,
                    priority=rng.randrange(3),
                    timeout=rng.choice([None, None, 0.0, 0.05]),
                )
            except QueueFullError:
                continue
            pieces = []
            closes = rng.random() < 0.2
            for piece in stream:
                pieces.append(piece)
                if closes and rng.random() < 0.3:
                    stream.close()
                    break
            found.append((kind, stream, "".join(pieces), closes))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    done = service.statistics
    assert done.waiting == done.running == done.failed == 0
    assert done.submitted == len(found) + KINDS
    assert done.finished + done.cancelled + done.timed_out == done.submitted
    for kind, stream, text, _ in found:
        expected = alone[kind]
        assert stream.finish_reason in ENDS
        if stream.finish_reason in ("cancelled", "timeout"):
            _agree(stream.logprobs, expected.logprobs, engine)
        elif engine.name == "native":
            assert text == "".join(expected.pieces_read)
            assert stream.logprobs == expected.logprobs
        else:
            _agree(stream.logprobs, expected.logprobs, engine)


def test_memory_is_flat_over_many_requests(tiny_model: Path, plugins: PluginManager) -> None:
    """What a request took is there for the next."""
    from truthgpt_plugin_native.engine import make_engine

    model = ModelService().load_model(str(tiny_model), {"device": "cpu"})
    engine = make_engine(model)
    assert engine is not None
    service = _service(plugins, engine, ModelService().load_tokenizer(str(tiny_model)))
    kinds = list(_kinds(random.Random(1)))

    def some() -> int:
        for prompt, options in kinds[:20]:
            service.generate([prompt, prompt + "x"], options)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    for _ in range(3):
        some()
    before = some()
    for _ in range(10):
        after = some()
    assert after - before < 4096, "kilobytes"


class _Whole:
    """A text that was read alone."""

    def __init__(self, stream: Any) -> None:
        self.pieces_read = list(stream)
        self.logprobs = stream.logprobs


def _whole(service: InferenceService, prompt: str, options: dict[str, Any]) -> _Whole:
    return _Whole(service.stream(prompt, options))


def _service(plugins: PluginManager, engine: Engine, tokenizer: Any) -> InferenceService:
    service = InferenceService(plugins)
    config = {"max_batch_size": 6, "max_waiting": 64, "prefix_cache_tokens": 600}
    service.configure(engine, tokenizer, config)
    return service


def _kinds(rng: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield prompts and options."""
    begins = ["", "A statement is executed by an interpreter. " * 3, "In Python, " * 8]
    choices: list[Callable[[], dict[str, Any]]] = [
        lambda: {"temperature": rng.choice([0.7, 1.0]), "seed": rng.randrange(100)},
        lambda: {"temperature": 1.0, "top_p": 0.9, "top_k": 40, "min_p": 0.01},
        lambda: {"repetition_penalty": 1.2, "presence_penalty": 0.3},
        lambda: {"min_new_tokens": 1, "logit_bias": {5: 2.0}},
        lambda: {"stop": ["e", "an"]},
        lambda: {"prompt_lookup_num_tokens": 6},
        dict,
    ]
    for number in range(KINDS):
        length = rng.choice([1, 4, 12, 30])
        options = {"max_new_tokens": length, "logprobs": 1, **rng.choice(choices)()}
        yield rng.choice(begins) + f"number {number} is", options


def _agree(given: list[Any], expected: list[Any], engine: Engine) -> None:
    """Token by token the same, up to where two were nearly as likely."""
    for one, other in zip(given, expected, strict=False):
        if one.token != other.token:
            assert engine.name != "native"
            # Greedily, two that are nearly as likely; at random, a draw at the edge of two.
            return
        assert abs(one.logprob - other.logprob) <= (0 if engine.name == "native" else 1e-4)
