"""Tests of engines that give logits; `EngineContract` has them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest

from truthgpt_core.decoding import Engine, GenerationError, SequenceState
from truthgpt_core.errors import TruthGPTError
from truthgpt_core.testing.engine_needs import POSITIONS, needs, needs_that

_LONGEST_CONTEXT = 4096
"""Filling a longer context takes too long for a test."""


class LogitsTests:
    """What an engine that gives logits does, whatever sequences are computed together."""

    tolerance: ClassVar[float] = 0.0
    tokens: ClassVar[Sequence[int]] = ()

    @pytest.fixture
    def ids(self, engine: Engine) -> list[int]:
        """Tokens of a text."""
        needs(engine, "logits")
        if self.tokens:
            return list(self.tokens)
        if engine.vocabulary_size is None:
            raise TruthGPTError(
                f"{type(self).__name__} has no tokens, and the engine does not say which it knows",
                hint="Set tokens.",
            )
        chosen = random.Random(0)  # noqa: S311 - the same ones every time
        return [chosen.randrange(engine.vocabulary_size) for _ in range(POSITIONS)]

    @pytest.fixture
    def equal(self) -> Callable[[Any, Any], None]:
        """Fails where logits differ by more than the tolerance."""

        def compare(given: Any, expected: Any) -> None:
            assert tuple(given.shape) == tuple(expected.shape)
            # Written so that NaN fails.
            assert float((given.float() - expected.float()).abs().max()) <= self.tolerance

        return compare

    def test_logits_are_a_row_of_numbers_for_each_sequence(
        self, engine: Engine, ids: list[int]
    ) -> None:
        """They have the shape (1, vocabulary), a floating-point dtype, and are finite."""
        (state,) = engine.open(POSITIONS)
        (logits,) = engine.forward([state], [ids[:5]])
        assert state.length == 5
        assert logits.shape[0] == 1
        assert engine.vocabulary_size in (None, logits.shape[1])
        assert logits.is_floating_point()
        assert float((logits.float() - logits.float()).abs().max()) == 0.0
        engine.close([state])

    def test_all_logits_are_those_after_each_token(
        self, engine: Engine, ids: list[int], equal: Callable[[Any, Any], None]
    ) -> None:
        """With `all_logits` there is a row for each token, the one that it has alone."""
        one, other = engine.open(POSITIONS)[0], engine.open(POSITIONS)[0]
        (logits,) = engine.forward([one], [ids[:6]], all_logits=True)
        assert logits.shape[0] == 6
        for place, token in enumerate(ids[:6]):
            (last,) = engine.forward([other], [[token]])
            equal(logits[place : place + 1], last)
        engine.close([one, other])

    def test_logits_of_a_prompt_are_all_logits(
        self, engine: Engine, ids: list[int], equal: Callable[[Any, Any], None]
    ) -> None:
        """`prompt_logits` returns what `forward` with `all_logits` does."""
        needs(engine, "prompt_logprobs")
        (state,) = engine.open(POSITIONS)
        (logits,) = engine.forward([state], [ids[:20]], all_logits=True)
        equal(engine.prompt_logits(ids[:20]), logits)
        engine.close([state])

    @pytest.mark.parametrize("pieces", [(1, 19), (7, 13), (16, 1, 3)])
    def test_pieces_equal_the_whole(
        self,
        engine: Engine,
        ids: list[int],
        equal: Callable[[Any, Any], None],
        pieces: Sequence[int],
    ) -> None:
        """A prompt that is read in pieces has the logits that it has as a whole."""
        (state,) = engine.open(POSITIONS)
        for length in pieces:
            begin = state.length
            (logits,) = engine.forward([state], [ids[begin : begin + length]])
        equal(logits, _alone(engine, ids[: sum(pieces)]))
        engine.close([state])

    def test_a_ragged_batch_equals_one_by_one(
        self, engine: Engine, ids: list[int], equal: Callable[[Any, Any], None]
    ) -> None:
        """Sequences of different lengths, given different numbers of tokens, do not mix."""
        _needs_rows(engine, 3)
        states = engine.open(POSITIONS, 3)
        texts = [ids[:3], ids[10:30], ids[5:12]]
        for logits, text in zip(engine.forward(states, texts), texts, strict=True):
            equal(logits, _alone(engine, text))
        more = [ids[40:48], ids[30:31], ids[20:25]]
        for logits, text, new in zip(engine.forward(states, more), texts, more, strict=True):
            equal(logits, _alone(engine, text + new))
        engine.close(states)

    def test_sequences_may_be_given_in_any_order(
        self, engine: Engine, ids: list[int], equal: Callable[[Any, Any], None]
    ) -> None:
        """Some of those that were opened together, and others, take one call."""
        _needs_rows(engine, 3)
        first, second, _ = engine.open(POSITIONS, 3)
        (third,) = engine.open(POSITIONS)
        texts = [ids[:4], ids[4:9], ids[9:15]]
        for logits, text in zip(engine.forward([third, second, first], texts), texts, strict=True):
            equal(logits, _alone(engine, text))

    @pytest.mark.parametrize("seed", range(3))
    def test_sequences_join_and_leave_at_any_step(
        self, engine: Engine, ids: list[int], equal: Callable[[Any, Any], None], seed: int
    ) -> None:
        """Random steps of opening, appending, cropping, copying and closing leave each right."""
        chosen = random.Random(seed)  # noqa: S311 - the same steps every time
        most = min(4, engine.capabilities.rows or 4)
        texts: dict[SequenceState, list[int]] = {}
        for _ in range(20):
            step = chosen.choice(["open", "close", "crop", "fork", "forward", "forward"])
            if (step == "open" or not texts) and len(texts) < most:
                count = chosen.randint(1, most - len(texts))
                texts |= {state: [] for state in engine.open(POSITIONS, count)}
            elif step == "close":
                gone = chosen.choice(list(texts))
                engine.close([gone])
                del texts[gone]
            elif step == "crop" and engine.capabilities.crop:
                state = chosen.choice(list(texts))
                texts[state] = texts[state][: chosen.randint(0, state.length)]
                engine.crop(state, len(texts[state]))
            elif step == "fork" and engine.capabilities.fork and len(texts) < most:
                state = chosen.choice(list(texts))
                length = chosen.randint(0, state.length)
                texts[engine.fork(state, length, POSITIONS)] = texts[state][:length]
            else:
                some = chosen.sample(list(texts), chosen.randint(1, len(texts)))
                some = [state for state in some if state.length <= POSITIONS - 8]
                new = [chosen.sample(ids, chosen.randint(1, 8)) for _ in some]
                for state, added in zip(some, new, strict=True):
                    texts[state] = texts[state] + added
                for state, logits in zip(
                    some, engine.forward(some, new) if some else (), strict=True
                ):
                    equal(logits, _alone(engine, texts[state]))
            assert all(state.length == len(text) for state, text in texts.items())
        engine.close(list(texts))

    def test_sequences_are_closed_in_any_order(
        self, engine: Engine, ids: list[int], equal: Callable[[Any, Any], None]
    ) -> None:
        """Those that stay go on as before, whichever of those opened together go."""
        _needs_rows(engine, 3)
        states = engine.open(POSITIONS, 3)
        engine.forward(states, [ids[:3], ids[3:6], ids[6:9]])
        engine.close([states[0]])
        (logits,) = engine.forward([states[2]], [ids[9:11]])
        equal(logits, _alone(engine, ids[6:11]))
        engine.close([states[2]])
        (logits,) = engine.forward([states[1]], [ids[6:7]])
        equal(logits, _alone(engine, ids[3:7]))
        engine.close([states[1]])

    @pytest.mark.parametrize("length", [0, 1, 10, 16, 19])
    def test_after_a_crop_other_tokens_follow(
        self, engine: Engine, ids: list[int], equal: Callable[[Any, Any], None], length: int
    ) -> None:
        """A cropped sequence goes on as one that never had the tokens that were removed."""
        needs(engine, "crop")
        (state,) = engine.open(POSITIONS)
        engine.forward([state], [ids[:20]])
        engine.crop(state, length)
        assert state.length == length
        (logits,) = engine.forward([state], [ids[30:33]])
        equal(logits, _alone(engine, ids[:length] + ids[30:33]))
        engine.close([state])

    @pytest.mark.parametrize("length", [-1, 6])
    def test_a_sequence_keeps_no_more_than_it_has(
        self, engine: Engine, ids: list[int], length: int
    ) -> None:
        """`crop` and `fork` to a length that it does not have are refused."""
        needs(engine, "crop")
        (state,) = engine.open(POSITIONS)
        engine.forward([state], [ids[:5]])
        with pytest.raises(GenerationError):
            engine.crop(state, length)
        if engine.capabilities.fork:
            with pytest.raises(GenerationError):
                engine.fork(state, length, POSITIONS)
        engine.close([state])

    @pytest.mark.parametrize("length", [0, 1, 10, 16, 20])
    def test_a_fork_equals_reading_the_beginning_anew(
        self, engine: Engine, ids: list[int], equal: Callable[[Any, Any], None], length: int
    ) -> None:
        """The copy goes on from the beginning, and the original stays as it is."""
        needs(engine, "fork")
        (state,) = engine.open(POSITIONS)
        engine.forward([state], [ids[:20]])
        copy = engine.fork(state, length, POSITIONS)
        assert (state.length, copy.length) == (20, length)
        (logits,) = engine.forward([copy], [ids[30:33]])
        equal(logits, _alone(engine, ids[:length] + ids[30:33]))
        (logits,) = engine.forward([state], [ids[20:22]])
        equal(logits, _alone(engine, ids[:22]))
        engine.close([state, copy])

    @pytest.mark.parametrize("first", ["original", "copy"])
    def test_closing_an_original_or_a_copy_leaves_the_other(
        self, engine: Engine, ids: list[int], equal: Callable[[Any, Any], None], first: str
    ) -> None:
        """What they share is there until both are closed."""
        needs(engine, "fork")
        (state,) = engine.open(POSITIONS)
        engine.forward([state], [ids[:20]])
        copy = engine.fork(state, 18, POSITIONS)
        gone, stays = (state, copy) if first == "original" else (copy, state)
        engine.close([gone])
        # Where memory was freed too early, others may take it.
        engine.forward(engine.open(POSITIONS), [ids[40:]])
        length = stays.length
        (logits,) = engine.forward([stays], [ids[25:27]])
        equal(logits, _alone(engine, ids[:length] + ids[25:27]))
        engine.close([stays])

    def test_the_end_of_the_context_is_an_error(
        self, engine: Engine, ids: list[int], equal: Callable[[Any, Any], None]
    ) -> None:
        """More than the model holds is refused, and the sequence goes on with what fits."""
        limit = engine.context_length
        needs_that("context_length", limit is not None and limit <= _LONGEST_CONTEXT)
        assert limit is not None
        with pytest.raises(GenerationError):
            engine.open(limit + 1)
        (state,) = engine.open(limit)
        text = (ids * limit)[: limit - 2]
        engine.forward([state], [text])
        with pytest.raises(GenerationError):
            engine.forward([state], [ids[:3]])
        assert state.length == limit - 2
        (logits,) = engine.forward([state], [ids[:2]])
        equal(logits, _alone(engine, text + ids[:2]))
        engine.close([state])

    def test_wrong_calls_are_refused_and_change_nothing(
        self,
        engine: Engine,
        ids: list[int],
        equal: Callable[[Any, Any], None],
        request: pytest.FixtureRequest,
    ) -> None:
        """An error comes before anything is computed, for other sequences of the call as well."""
        _needs_rows(engine, 2)
        (state,), (beside,), (closed,) = (engine.open(POSITIONS) for _ in range(3))
        engine.forward([state], [ids[:5]])
        engine.close([closed])
        (foreign,) = request.getfixturevalue("other_engine").open(POSITIONS)
        wrong: dict[str, tuple[list[SequenceState], list[list[int]]]] = {
            "no tokens": ([state, beside], [ids[:1], []]),
            "a sequence twice": ([state, state], [ids[:1], ids[1:2]]),
            "a closed sequence": ([state, closed], [ids[:1], ids[1:2]]),
            "a sequence of another engine": ([state, foreign], [ids[:1], ids[1:2]]),
            "a negative token": ([state, beside], [ids[:1], [-1]]),
        }
        if engine.vocabulary_size is not None:
            wrong["an unknown token"] = ([state, beside], [ids[:1], [engine.vocabulary_size]])
        for what, (states, tokens) in wrong.items():
            refused = False
            try:
                engine.forward(states, tokens)
            except GenerationError:
                refused = True
            assert refused, what
            assert (state.length, beside.length) == (5, 0), what
        (logits,) = engine.forward([state], [ids[5:7]])
        equal(logits, _alone(engine, ids[:7]))

    def test_threads_get_the_logits_that_they_get_alone(
        self, engine: Engine, ids: list[int], equal: Callable[[Any, Any], None]
    ) -> None:
        """Several threads may use one engine at once."""
        counts = (3, 20, 40)
        expected = {count: _alone(engine, ids[:count]) for count in counts}

        def use(count: int) -> Any:
            return [_alone(engine, ids[:count]) for _ in range(3)]

        with ThreadPoolExecutor(len(counts)) as threads:
            for count, found in zip(counts, threads.map(use, counts), strict=True):
                for logits in found:
                    equal(logits, expected[count])


def _needs_rows(engine: Engine, count: int) -> None:
    needs_that("rows", engine.capabilities.rows is None or engine.capabilities.rows >= count)


def _alone(engine: Engine, tokens: Sequence[int]) -> Any:
    """Return the logits after tokens that are read at once, into a sequence of their own."""
    states = engine.open(max(len(tokens), POSITIONS))
    (logits,) = engine.forward(states, [tokens])
    engine.close(states)
    return logits
