"""Many texts at once: which sequences take part in the next pass through an engine.

There is no thread of its own: whoever waits for a text takes the passes for all, and others who
wait meanwhile are woken when theirs has grown.
"""

from __future__ import annotations

import threading
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Any

from truthgpt_core.decoding import (
    Engine,
    GenerationError,
    SequenceState,
    TokenLogprobs,
    refuse_too_long,
)
from truthgpt_services.inference.prefix_cache import PrefixCache, common_prefix
from truthgpt_services.inference.request import Request
from truthgpt_services.inference.sampling import token_logprobs

MOST_PROMPT_TOKENS = 512
"""Tokens of prompts in one pass at most."""

LEAST_PROMPT_TOKENS = 16
"""Tokens of prompts in one pass at least, however slow the passes are."""

UNMEASURED_PROMPT_TOKENS = 64
"""Tokens of prompts in one pass while others wait and no pass was measured yet."""

LONGEST_PASS = 2.0
"""How long a pass with tokens of prompts may take while others wait for their next token, as a
multiple of one without."""

LEAST_SHARED = 16
"""From how many common tokens on a sequence is copied: below that, reading them takes no longer."""

LONGEST_SLEEP = 1.0
"""Seconds after which who waits looks by itself: an interrupt may have kept it from being woken."""


class QueueFullError(GenerationError):
    """There are as many requests as may wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStatistics:
    """What a scheduler has done since it was made, and what it holds now.

    Attributes:
        waiting: requests that have not begun.
        running: requests that have.
        submitted: requests that came.
        finished: those that ended with all of their text.
        cancelled: those that nobody wanted any more.
        timed_out: those whose deadline passed.
        failed: those that ended with an error.
        passes: calls of the engine for all sequences together.
        prompt_tokens: tokens of prompts that were read.
        reused_tokens: tokens of prompts that were taken from other sequences.
        generated_tokens: tokens that were chosen.
        kept_tokens: tokens in sequences that are kept for later prompts.
        engine_seconds: time in the engine.
        choosing_seconds: time for choosing tokens and turning them into text.
        seconds: time of passes, with all that belongs to them.
    """

    waiting: int = 0
    running: int = 0
    submitted: int = 0
    finished: int = 0
    cancelled: int = 0
    timed_out: int = 0
    failed: int = 0
    passes: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    kept_tokens: int = 0
    engine_seconds: float = 0.0
    choosing_seconds: float = 0.0
    seconds: float = 0.0


@dataclass(eq=False, slots=True)
class _Row:
    """A request that has begun."""

    request: Request
    state: SequenceState
    tokens: list[int]
    computed: int = 0
    decoded: Iterator[Sequence[int]] | None = None

    @property
    def is_reading(self) -> bool:
        """Whether more than its last token is missing in the cache."""
        return self.decoded is None and len(self.tokens) - self.computed > 1

    @property
    def is_scoring(self) -> bool:
        """Whether log-probabilities of its prompt are missing."""
        request = self.request
        return request.params.prompt_logprobs is not None and self.computed < len(request.prompt)


class Scheduler:
    """Generates texts with one engine, each as it would be alone.

    Its methods may be called from several threads. Requests begin in the order of their
    `priority`, and then as they come. A prompt is read in pieces while others generate, and what it
    has in common with another sequence is copied where the engine can do so. A request that ends
    frees its place before the next pass.

    Args:
        engine: gives logits.
        max_batch_size: how many texts are generated at once at most.
        max_waiting: how many more may wait.
        prefix_cache_tokens: how many tokens are kept of texts that ended, for prompts that begin
            the same way; 0 for none. Only an engine that can copy sequences keeps any.
        notify: called with each request that begins, and with each that ended.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_batch_size: int = 8,
        max_waiting: int = 1024,
        prefix_cache_tokens: int = 0,
        notify: Callable[[Request], None] | None = None,
    ) -> None:
        able = engine.capabilities
        self._engine = engine
        self._most = max_batch_size if able.rows is None else min(max_batch_size, able.rows)
        self._max_waiting = max_waiting
        self._notify = notify or (lambda request: None)
        self._kept = PrefixCache(engine, prefix_cache_tokens if able.fork else 0)
        # Reentrant, as all locks here: collecting memory may cancel while this thread holds one.
        self._queue = threading.RLock()
        self._waiting: list[tuple[int, int, Request]] = []
        self._rows: list[_Row] = []
        self._session: AbstractContextManager[None] | None = None
        self._counting = threading.RLock()
        self._counts: Counter[str] = Counter()
        self._submitted = 0
        self._beginning: list[Request] = []
        self._closed = False
        # The thread that takes the passes. A dict is set in one step: after an interrupt, at
        # whatever place, a thread still knows whether it has the turn. A lock does not say.
        self._turn: dict[str, int] = {}
        self._changed = threading.Condition()
        self._lost = False
        self._pass_seconds = self._prompt_seconds = 0.0

    @property
    def statistics(self) -> SchedulerStatistics:
        """What was done, and what it holds now."""
        with self._counting:
            counts: dict[str, Any] = dict(self._counts)
        return SchedulerStatistics(
            **counts,
            submitted=self._submitted,
            waiting=len(self._waiting),
            running=len(self._rows),
            kept_tokens=self._kept.tokens,
        )

    def submit(self, request: Request) -> None:
        """Let a request wait for its turn.

        Raises:
            QueueFullError: as many wait as may.
            GenerationError: the prompt is empty, or the model cannot hold prompt and answer.
        """
        if not request.prompt:
            raise GenerationError("The prompt is empty")
        refuse_too_long(request.positions, self._engine.context_length)
        with self._queue:
            now = monotonic()
            waiting = sum(self._why_over(each[2], now) is None for each in self._waiting)
            if waiting >= self._max_waiting and not self._closed:
                raise QueueFullError(
                    f"{waiting} requests wait for the model, which is the limit",
                    hint="Try again later, or raise max_waiting.",
                )
            self._submitted += 1
            entry = (request.priority, self._submitted, request)
            if not self._closed:
                insort(self._waiting, entry)
                return
        self._end(request, "cancelled")

    def wait(self, ready: Callable[[], bool]) -> None:
        """Take passes, or let another thread take them, until something is so.

        Args:
            ready: whether it is so; true at the latest when some requests have ended.

        Raises:
            GenerationError: this thread is within a pass, which would have to end first.
        """
        while not ready():
            self.refuse_nested()
            if not self._drive(ready):
                self._sleep(ready)

    def cancel(self, request: Request) -> None:
        """End a request: its place is free before the next pass.

        It may be called at any time, also while memory is collected.
        """
        if request.finish_reason is None:
            request.is_cancelled = self._lost = True
            self._free_lost()

    def close(self) -> None:
        """End all requests, those that still come too, and free what is kept.

        Raises:
            GenerationError: this thread is within a pass.
        """
        self.refuse_nested()
        self._closed = self._lost = True
        while True:
            try:
                if self._take_turn():
                    self._drop_unwanted()
                    self._kept.clear()
                    self._leave_when_idle()
                    return
            finally:
                self._give_turn()
            self._sleep(lambda: False)

    def refuse_nested(self) -> None:
        """Refuse to wait for a text within a pass, which would have to end first.

        Raises:
            GenerationError: this thread is within a pass.
        """
        if self._has_turn():
            raise GenerationError(
                "A listener, logits processor or decoder waits for text of the service that "
                "called it",
                hint="Let another thread ask for it, or ask when that text is over.",
            )

    def _drive(self, ready: Callable[[], bool]) -> bool:
        """Take passes until something is so.

        Returns:
            Whether it is; if not, another thread takes the passes.
        """
        took = False
        try:
            try:
                took = self._take_turn()
                while took and not ready():
                    if not self._pass() and not ready():
                        raise RuntimeError("No request is left that could make it so")
            finally:
                self._give_turn()
        finally:
            # Again, for an interrupt that came just before.
            self._give_turn()
            self._free_lost()
        return took

    def _sleep(self, ready: Callable[[], bool]) -> None:
        """Wait until the thread that takes the passes has done something."""
        with self._changed:
            # Who has the turn may have given it back between the two.
            if not ready() and self._turn:
                self._changed.wait(LONGEST_SLEEP)

    def _has_turn(self) -> bool:
        return self._turn.get("thread") == threading.get_ident()

    def _take_turn(self) -> bool:
        """Return whether this thread, which does not have the turn, has it now."""
        me = threading.get_ident()
        return self._turn.setdefault("thread", me) == me

    def _give_turn(self) -> None:
        if self._has_turn():
            del self._turn["thread"]
            self._wake()

    def _free_lost(self) -> None:
        # Without waiting: the thread that drives may be this one, collecting memory.
        while self._lost and not self._has_turn():
            try:
                if not self._take_turn():
                    return
                self._lost = False
                self._drop_unwanted()
                self._leave_when_idle()
            finally:
                self._give_turn()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _pass(self) -> bool:
        """Take one pass, and wake those who wait for what it gave.

        Returns:
            Whether there was anything to do.
        """
        began = perf_counter()
        before = list(self._rows)
        self._lost = False
        try:
            self._drop_unwanted()
            self._admit()
            worked = bool(self._rows)
            if self._rows:
                self._decode([row for row in self._rows if row.decoded is None])
                for row in [row for row in self._rows if row.decoded is not None]:
                    self._decode_alone(row)
            self._leave_when_idle()
        except BaseException as error:
            # An interrupt: nobody knows how far the engine came.
            stopped = GenerationError(f"Generating was ended by {type(error).__name__}")
            for row in list(self._rows):
                self._fail(row, stopped)
            for request in [*(row.request for row in before), *self._beginning]:
                self._end(request, "error", stopped)
            self._leave_when_idle()
            raise
        finally:
            self._count(passes=1, seconds=perf_counter() - began)
            self._wake()
        return worked or bool(self._waiting)

    def _drop_unwanted(self) -> None:
        """End what was cancelled or is too late, in rows and among those that wait."""
        now = monotonic()
        for row in list(self._rows):
            if (reason := self._why_over(row.request, now)) is not None:
                self._finish(row, reason)
        with self._queue:
            waiting = [request for _, _, request in self._waiting]
        over = [each for each in waiting if self._why_over(each, now) is not None]
        for request in over:
            self._end(request, self._why_over(request, now) or "cancelled")
        if over:
            with self._queue:
                self._waiting = [each for each in self._waiting if each[2].finish_reason is None]

    def _why_over(self, request: Request, now: float) -> str | None:
        return "cancelled" if self._closed else request.why_over(now)

    # Admission

    def _admit(self) -> None:
        free = self._most - len(self._rows)
        able = self._engine.capabilities
        # Where those that join take passes of their own, a few large batches beat many small ones.
        if free <= 0 or (not able.continuous_batching and free < len(self._rows)):
            return
        together: list[Request] = []
        with self._queue:
            left = []
            for entry in self._waiting:
                # One that an interrupt kept from being taken out.
                if entry[2].finish_reason is not None:
                    continue
                if len(together) < free and self._may_begin(entry[2], together):
                    together.append(entry[2])
                else:
                    left.append(entry)
            self._beginning = together
            self._waiting = left
        if together:
            self._begin(together)
        self._beginning = []

    def _may_begin(self, request: Request, together: Sequence[Request]) -> bool:
        if not self._engine.capabilities.fork:
            limit = self._engine.context_length
            return limit is None or not together or _positions([*together, request]) <= limit
        if _reads_all(request):
            return True
        # What others are reading is read once: it is copied as soon as it is there.
        _, common, has = self._nearest(request)
        _, held = self._kept.find(request.prompt)
        ahead = max((common_prefix(request.prompt, each.prompt) for each in together), default=0)
        return max(common, ahead) < max(has, held) + LEAST_SHARED

    def _nearest(self, request: Request) -> tuple[_Row | None, int, int]:
        """Return the row that has most of the beginning of a prompt in its cache.

        Returns:
            It; how much of the prompt some row will have; and how much that one has now.
        """
        nearest, most, has = None, 0, 0
        for row in self._rows:
            common = common_prefix(request.prompt, row.request.prompt)
            most = max(most, common)
            if (there := min(common, row.computed)) > has:
                nearest, has = row, there
        return nearest, most, has

    def _begin(self, together: Sequence[Request]) -> None:
        """Open sequences, those that share a cache at once."""
        try:
            self._enter()
        except Exception as error:  # noqa: BLE001 - handed to those who wait
            for request in together:
                self._end(request, "error", error)
            return
        if not self._engine.capabilities.fork:
            # Passes of its own would widen the columns that it shares.
            shared = [each for each in together if not _reads_all(each)]
            groups = [shared] if shared else []
            groups += [[each] for each in together if _reads_all(each)]
        else:
            groups = [[each] for each in together]
        for group in groups:
            try:
                states = self._open(group)
            except Exception as error:  # noqa: BLE001 - handed to those who wait
                for request in group:
                    self._end(request, "error", error)
                continue
            for request, state in zip(group, states, strict=True):
                request.started = monotonic()
                row = _Row(request, state, list(request.prompt), request.reused)
                self._rows.append(row)
                self._count(reused_tokens=request.reused)
                try:
                    if request.decoder is not None:
                        made = request.decoder.decode(
                            self._engine, state, request.prompt, request.choose
                        )
                        row.decoded = iter(made)
                    self._notify(request)
                except Exception as error:  # noqa: BLE001 - handed to those who wait
                    self._fail(row, error)

    def _enter(self) -> None:
        if self._session is None:
            session = self._engine.session()
            session.__enter__()
            self._session = session

    def _open(self, group: Sequence[Request]) -> list[SequenceState]:
        (request, *others) = group
        if self._engine.capabilities.fork and not others and not _reads_all(request):
            row, _, has = self._nearest(request)
            kept, held = self._kept.find(request.prompt)
            nearest = kept if kept is not None and held >= has else row
            # One token is read at least: the logits after it are needed.
            shared = min(max(has, held), len(request.prompt) - 1)
            if nearest is not None and shared >= LEAST_SHARED:
                request.reused = shared
                return [self._engine.fork(nearest.state, shared, request.positions)]
        return self._engine.open(_positions(group), len(group))

    def _leave_when_idle(self) -> None:
        if not self._rows and self._session is not None:
            session, self._session = self._session, None
            session.__exit__(None, None, None)

    # Passes

    def _decode(self, rows: Sequence[_Row]) -> None:
        """Give each sequence its next tokens, in one pass."""
        pieces = self._pieces(rows)
        alone = [each for each in pieces if each[0].is_scoring]
        together = [each for each in pieces if each not in alone]
        if together:
            self._forward(together, all_logits=False)
        for each in alone:
            self._forward([each], all_logits=True)

    def _pieces(self, rows: Sequence[_Row]) -> list[tuple[_Row, list[int]]]:
        """Return what each row takes part with: its last token, or a piece of its prompt."""
        room = MOST_PROMPT_TOKENS
        # Sequences that share columns have to go through them together.
        each_alike = not self._engine.capabilities.continuous_batching
        if not all(row.is_reading for row in rows):
            spare = float(UNMEASURED_PROMPT_TOKENS)
            if self._pass_seconds > 0.0 and self._prompt_seconds > 0.0:
                spare = (LONGEST_PASS - 1.0) * self._pass_seconds / self._prompt_seconds
            room = max(LEAST_PROMPT_TOKENS, min(room, int(spare)))
        pieces = []
        for row in rows:
            if not row.is_reading:
                pieces.append((row, row.tokens[row.computed :]))
            elif room > 0:
                piece = row.tokens[row.computed : row.computed + room]
                room -= 0 if each_alike else len(piece)
                pieces.append((row, piece))
        return pieces

    def _forward(self, pieces: Sequence[tuple[_Row, list[int]]], *, all_logits: bool) -> None:
        began = perf_counter()
        read = sum(len(piece) for row, piece in pieces if row.is_reading)
        try:
            found = self._engine.forward(
                [row.state for row, _ in pieces],
                [piece for _, piece in pieces],
                all_logits=all_logits,
            )
        except Exception as error:  # noqa: BLE001 - handed to those who wait
            # Which of them it was cannot be known, nor what is left in their caches.
            for row, _ in pieces:
                self._fail(row, error)
            return
        seconds = perf_counter() - began
        self._learn(len(pieces), read, seconds)
        self._count(engine_seconds=seconds, prompt_tokens=read)
        began = perf_counter()
        for (row, piece), logits in zip(pieces, found, strict=True):
            try:
                self._advance(row, piece, logits)
            except Exception as error:  # noqa: BLE001 - handed to those who wait
                self._fail(row, error)
        self._count(choosing_seconds=perf_counter() - began)

    def _learn(self, rows: int, read: int, seconds: float) -> None:
        """Remember how long a pass without prompts takes, and a token of a prompt."""
        if read == 0:
            self._pass_seconds = _blend(self._pass_seconds, seconds)
        elif read >= LEAST_PROMPT_TOKENS:
            own = self._pass_seconds if rows > 1 else 0.0
            self._prompt_seconds = _blend(self._prompt_seconds, max(seconds - own, 0.0) / read)

    def _advance(self, row: _Row, piece: Sequence[int], logits: Any) -> None:
        request = row.request
        if row.is_scoring:
            self._score_prompt(row, logits)
        row.computed += len(piece)
        if row.computed == len(row.tokens):
            self._take(row, request.choose(logits[-1], row.tokens))

    def _score_prompt(self, row: _Row, logits: Any) -> None:
        """Say how likely the tokens of a piece of a prompt were, the first of all excepted."""
        request, top = row.request, row.request.params.prompt_logprobs
        if row.computed == 0:
            request.prompt_logprobs.append(TokenLogprobs(token=request.prompt[0], logprob=None))
        # Logits say what follows a token; what follows the last is not of the prompt.
        following = request.prompt[row.computed + 1 : row.computed + 1 + len(logits)]
        request.prompt_logprobs += token_logprobs(logits[: len(following)], following, top or 0)

    def _decode_alone(self, row: _Row) -> None:
        """Let a decoder of its own take its next step."""
        assert row.decoded is not None
        began = perf_counter()
        try:
            tokens = next(row.decoded, None)
            if tokens is None:
                self._finish(row, "eos_token")
                return
            row.computed = row.state.length
            for left, token in zip(range(len(tokens) - 1, -1, -1), tokens, strict=True):
                self._take(row, token, ahead=left)
                if row.request.finish_reason is not None:
                    return
        except Exception as error:  # noqa: BLE001 - handed to those who wait
            self._fail(row, error)
        finally:
            self._count(engine_seconds=perf_counter() - began)

    def _take(self, row: _Row, token: int, ahead: int = 0) -> None:
        """Add a token to a text, and end it if it is over.

        Args:
            row: the text.
            token: what comes next.
            ahead: how many more were chosen already.
        """
        request = row.request
        request.passes += 1
        if request.first_token is None:
            request.first_token = monotonic()
        self._count(generated_tokens=1)
        if token in request.end:
            self._finish(row, "eos_token")
            return
        row.tokens.append(token)
        request.made += 1
        if request.accept(token):
            self._finish(row, "stop_sequence")
        elif request.choose.finished and ahead == 0:
            self._finish(row, "eos_token")
        elif request.made >= request.params.max_new_tokens:
            self._finish(row, "length")

    # Ends

    def _finish(self, row: _Row, reason: str) -> None:
        error: Exception | None = None
        try:
            self._free(row)
        except Exception as raised:  # noqa: BLE001 - handed to those who wait
            reason, error = "error", raised
        self._end(row.request, reason, error)

    def _fail(self, row: _Row, error: BaseException) -> None:
        self._rows.remove(row)
        # It may be broken, and the error that counts is the first.
        with suppress(Exception):
            self._close(row)
        self._end(row.request, "error", error)

    def _free(self, row: _Row) -> None:
        self._rows.remove(row)
        if row.decoded is None:
            self._kept.keep(row.state, tuple(row.tokens[: row.computed]))
        else:
            self._close(row)

    def _close(self, row: _Row) -> None:
        try:
            close = getattr(row.decoded, "close", lambda: None)
            close()
        finally:
            self._engine.close([row.state])

    def _end(self, request: Request, reason: str, error: BaseException | None = None) -> None:
        if request.finish_reason is not None:
            return
        request.finish(reason, error)
        counted = {"cancelled": "cancelled", "timeout": "timed_out", "error": "failed"}
        self._count(**{counted.get(reason, "finished"): 1})
        try:
            self._notify(request)
        except Exception as raised:  # noqa: BLE001 - handed to those who wait
            request.error = request.error or raised

    def _count(self, **added: float) -> None:
        with self._counting:
            for name, value in added.items():
                self._counts[name] += value  # type: ignore[assignment] # seconds are counted too


def _reads_all(request: Request) -> bool:
    """Whether all tokens of a prompt have to go through the model."""
    return request.decoder is not None or request.params.prompt_logprobs is not None


def _positions(requests: Sequence[Request]) -> int:
    """Return how many positions each sequence of a batch needs, if they share columns."""
    longest = max(len(each.prompt) for each in requests)
    return longest + max(each.params.max_new_tokens for each in requests)


def _blend(before: float, now: float) -> float:
    return now if before == 0.0 else 0.8 * before + 0.2 * now
