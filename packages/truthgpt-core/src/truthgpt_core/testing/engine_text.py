"""Tests of engines that choose tokens themselves; `EngineContract` has them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

from truthgpt_core.decoding import Engine, GenerationError, SamplingParams
from truthgpt_core.testing.engine_needs import needs_that

_REASONS = (None, "eos_token", "length", "stop_sequence")


class TextTests:
    """What an engine that chooses tokens itself does."""

    prompt: ClassVar[str] = "Once upon a time"

    @pytest.mark.parametrize("kind", ["text", "chat"])
    def test_it_continues_a_prompt(self, engine: Engine, kind: str) -> None:
        """A text and the messages of a conversation are answered in pieces of text."""
        _needs_no_logits(engine)
        given: Any = [{"role": "user", "content": self.prompt}] if kind == "chat" else self.prompt
        text, reason = _generated(engine, given, max_new_tokens=12)
        assert isinstance(text, str)
        assert text
        assert reason in _REASONS

    def test_greedy_text_is_the_same_again(self, engine: Engine) -> None:
        """Temperature 0, the default, takes the likeliest token: the seed does not matter."""
        _needs_no_logits(engine)
        once, again = (_generated(engine, self.prompt, seed=seed)[0] for seed in (1, 2))
        assert once == again

    def test_a_seed_gives_the_same_text_again(self, engine: Engine) -> None:
        """A random choice with a seed is repeated by the same seed."""
        _needs_no_logits(engine)
        needs_that("seed", {"seed", "temperature"} <= engine.options)
        once, again = (
            _generated(engine, self.prompt, temperature=1.0, seed=3)[0] for _ in range(2)
        )
        assert once == again

    def test_the_number_of_tokens_is_a_limit(self, engine: Engine) -> None:
        """With `max_new_tokens` a text ends earlier, and says so where the engine knows."""
        _needs_no_logits(engine)
        whole, _ = _generated(engine, self.prompt, max_new_tokens=12)
        begin, reason = _generated(engine, self.prompt, max_new_tokens=4)
        assert whole.startswith(begin)
        assert len(begin) < len(whole)
        assert reason in (None, "length")

    def test_a_stop_string_is_not_part_of_the_text(self, engine: Engine) -> None:
        """The text ends before the first of them, and what it is part of is not shown either."""
        _needs_no_logits(engine)
        needs_that("stop", "stop" in engine.options)
        whole, _ = _generated(engine, self.prompt)
        stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
        text, reason = _generated(engine, self.prompt, stop=("\0never", stop))
        assert text == whole[: whole.find(stop)]
        assert reason in (None, "stop_sequence")

    def test_a_text_that_is_not_read_on_leaves_the_engine_free(self, engine: Engine) -> None:
        """After an iterator is closed early the next request works, and so it does before."""
        _needs_no_logits(engine)
        whole, _ = _generated(engine, self.prompt)
        unread = iter(engine.generate(self.prompt, SamplingParams(max_new_tokens=24)))
        next(unread)
        assert _generated(engine, self.prompt)[0] == whole
        _close(unread)
        _close(iter(engine.generate(self.prompt, SamplingParams(max_new_tokens=24))))
        assert _generated(engine, self.prompt)[0] == whole

    def test_threads_get_the_text_that_they_get_alone(self, engine: Engine) -> None:
        """Several threads may generate at once."""
        _needs_no_logits(engine)
        prompts = [f"{self.prompt}{more}" for more in ("", " and", ", then")]
        expected = [_generated(engine, prompt)[0] for prompt in prompts]
        with ThreadPoolExecutor(len(prompts)) as threads:
            found = threads.map(lambda prompt: _generated(engine, prompt)[0], prompts)
            assert list(found) == expected

    @pytest.mark.parametrize("prompt", ["", []], ids=["text", "chat"])
    def test_an_empty_prompt_is_refused(self, engine: Engine, prompt: Any) -> None:
        """There is nothing to continue, and no message to answer."""
        _needs_no_logits(engine)
        with pytest.raises(GenerationError):
            _generated(engine, prompt)


def _needs_no_logits(engine: Engine) -> None:
    if engine.capabilities.logits:
        pytest.skip("it gives logits, and chooses no tokens")


def _generated(engine: Engine, prompt: Any, **options: Any) -> tuple[str, Any]:
    """Return a whole text, and why it ended."""
    pieces = []
    made = iter(engine.generate(prompt, SamplingParams(**{"max_new_tokens": 24, **options})))
    while True:
        try:
            pieces.append(next(made))
        except StopIteration as end:
            return "".join(pieces), end.value


def _close(iterator: Iterator[str]) -> None:
    # A generator has it; one that is not may have nothing to free.
    getattr(iterator, "close", lambda: None)()
