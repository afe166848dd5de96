"""Many texts at once: which sequences take part in the next pass through an engine.

There is no thread of its own: a thread that waits for a text takes the passes for all, and others
that wait meanwhile are woken when theirs has grown. A program that reads texts without waiting,
such as a server, has one thread take them all (`run`).
"""

from __future__ import annotations

import threading
from bisect import insort
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic, perf_counter
from typing import Any

from truthgpt_core.decoding import (
    Engine,
    GenerationError,
    OverloadedError,
    TokenLogprobs,
    UnavailableError,
    refuse_too_long,
)
from truthgpt_services.inference.pass_times import PassTimes
from truthgpt_services.inference.request import Request
from truthgpt_services.inference.rows import Row, Rows
from truthgpt_services.inference.sampling import token_logprobs
from truthgpt_services.inference.statistics import Counters, SchedulerStatistics
from truthgpt_services.inference.turns import LONGEST_SLEEP, Turns


class QueueFullError(OverloadedError):
    """There are as many requests as may wait."""


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
        # Reentrant: collecting memory may cancel while this thread holds it.
        self._queue = threading.RLock()
        self._waiting: list[tuple[int, int, Request]] = []
        self._rows = Rows(engine, prefix_cache_tokens)
        self._counters = Counters()
        self._submitted = 0
        self._submission = threading.Event()
        self._beginning: list[Request] = []
        self._closed = False
        # Whose it is takes the passes.
        self._turns = Turns()
        self._times = PassTimes()
        self._lost = False

    @property
    def statistics(self) -> SchedulerStatistics:
        """What was done, and what it holds now."""
        return self._counters.statistics(
            submitted=self._submitted,
            waiting=len(self._waiting),
            running=len(self._rows.running),
            kept_tokens=self._rows.kept_tokens,
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
                self._submission.set()
                return
        self._end(request, "cancelled")

    def run(self, stop: Callable[[], bool]) -> None:
        """Take passes whenever there is something to do.

        For a thread that does nothing else; requests are read by others as they progress.

        Args:
            stop: whether to return; it is asked between two passes, and once a second while there
                is nothing to do.
        """
        while not stop():
            self._submission.wait(LONGEST_SLEEP)
            self._submission.clear()
            self.wait(lambda: stop() or not (self._waiting or self._rows.running))

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
                self._turns.sleep(ready)

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
                if self._turns.take():
                    self._drop_unwanted()
                    self._rows.forget()
                    self._rows.leave_when_idle()
                    return
            finally:
                self._turns.give()
            self._turns.sleep(lambda: False)

    def refuse_nested(self) -> None:
        """Refuse to wait for a text within a pass, which would have to end first.

        Raises:
            GenerationError: this thread is within a pass.
        """
        self._turns.refuse_nested()

    def _drive(self, ready: Callable[[], bool]) -> bool:
        """Take passes until something is so.

        Returns:
            Whether it is; if not, another thread takes the passes.
        """
        took = False
        try:
            try:
                took = self._turns.take()
                while took and not ready():
                    # A request may come after a pass that had nothing to do.
                    if not (self._pass() or ready() or self._waiting or self._rows.running):
                        raise RuntimeError("No request is left that could make it so")
            finally:
                self._turns.give()
        finally:
            # Again, for an interrupt that came just before.
            self._turns.give()
            self._free_lost()
        return took

    def _free_lost(self) -> None:
        # Without waiting: the thread that drives may be this one, collecting memory.
        while self._lost and not self._turns.is_mine:
            try:
                if not self._turns.take():
                    return
                self._lost = False
                self._drop_unwanted()
                self._rows.leave_when_idle()
            finally:
                self._turns.give()

    def _pass(self) -> bool:
        """Take one pass, and wake those who wait for what it gave.

        Returns:
            Whether there was anything to do.
        """
        began = perf_counter()
        before = list(self._rows.running)
        self._lost = False
        try:
            self._drop_unwanted()
            self._admit()
            worked = bool(self._rows.running)
            if worked:
                self._decode([row for row in self._rows.running if row.decoded is None])
                for row in [row for row in self._rows.running if row.decoded is not None]:
                    self._decode_alone(row)
            self._rows.leave_when_idle()
        except BaseException as error:
            # An interrupt: nobody knows how far the engine came.
            stopped = UnavailableError(f"Generating was ended by {type(error).__name__}")
            for row in list(self._rows.running):
                self._fail(row, stopped)
            for request in [*(row.request for row in before), *self._beginning]:
                self._end(request, "error", stopped)
            self._rows.leave_when_idle()
            raise
        finally:
            self._counters.add(passes=1, seconds=perf_counter() - began)
            self._turns.wake()
        return worked or bool(self._waiting)

    def _drop_unwanted(self) -> None:
        """End what was cancelled or is too late, in rows and among those that wait."""
        now = monotonic()
        for row in list(self._rows.running):
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
        free = self._most - len(self._rows.running)
        able = self._engine.capabilities
        # Where those that join take passes of their own, a few large batches beat many small ones.
        if free <= 0 or (not able.continuous_batching and free < len(self._rows.running)):
            return
        together: list[Request] = []
        with self._queue:
            left = []
            for entry in self._waiting:
                # One that an interrupt kept from being taken out.
                if entry[2].finish_reason is not None:
                    continue
                if len(together) < free and self._rows.may_begin(entry[2], together):
                    together.append(entry[2])
                else:
                    left.append(entry)
            self._beginning = together
            self._waiting = left
        if together:
            self._begin(together)
        self._beginning = []

    def _begin(self, together: Sequence[Request]) -> None:
        """Open sequences, those that share a cache at once."""
        try:
            self._rows.enter()
        except Exception as error:  # noqa: BLE001 - handed to those who wait
            for request in together:
                self._end(request, "error", error)
            return
        for group in self._rows.groups(together):
            try:
                states = self._rows.open(group)
            except Exception as error:  # noqa: BLE001 - handed to those who wait
                for request in group:
                    self._end(request, "error", error)
                continue
            for request, state in zip(group, states, strict=True):
                request.started = monotonic()
                row = Row(request, state, list(request.prompt), request.reused)
                self._rows.running.append(row)
                self._counters.add(reused_tokens=request.reused)
                try:
                    if request.decoder is not None:
                        made = request.decoder.decode(
                            self._engine, state, request.prompt, request.choose
                        )
                        row.decoded = iter(made)
                    self._notify(request)
                except Exception as error:  # noqa: BLE001 - handed to those who wait
                    self._fail(row, error)

    # Passes

    def _decode(self, rows: Sequence[Row]) -> None:
        """Give each sequence its next tokens, in one pass."""
        pieces = self._pieces(rows)
        scoring = [each for each in pieces if each[0].is_scoring]
        together = [each for each in pieces if not each[0].is_scoring]
        if together:
            self._forward(together, all_logits=False)
        for each in scoring:
            self._forward([each], all_logits=True)

    def _pieces(self, rows: Sequence[Row]) -> list[tuple[Row, list[int]]]:
        """Return what each row takes part with: its last token, or a piece of its prompt."""
        prompts = sum(row.is_reading for row in rows)
        room = self._times.room(len(rows) - prompts, prompts)
        # Sequences that share columns have to go through them together.
        each_alike = not self._engine.capabilities.continuous_batching
        pieces = []
        for row in rows:
            if not row.is_reading:
                pieces.append((row, row.tokens[row.computed :]))
            elif room > 0:
                piece = row.tokens[row.computed : row.computed + room]
                room -= 0 if each_alike else len(piece)
                pieces.append((row, piece))
        return pieces

    def _forward(self, pieces: Sequence[tuple[Row, list[int]]], *, all_logits: bool) -> None:
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
        self._times.learn(sum(not row.is_reading for row, _ in pieces), read, seconds)
        self._counters.add(engine_seconds=seconds, prompt_tokens=read)
        began = perf_counter()
        for (row, piece), logits in zip(pieces, found, strict=True):
            try:
                self._advance(row, piece, logits)
            except Exception as error:  # noqa: BLE001 - handed to those who wait
                self._fail(row, error)
        self._counters.add(choosing_seconds=perf_counter() - began)

    def _advance(self, row: Row, piece: Sequence[int], logits: Any) -> None:
        request = row.request
        if row.is_scoring:
            self._score_prompt(row, logits)
        row.computed += len(piece)
        if row.computed == len(row.tokens):
            self._take(row, request.choose(logits[-1], row.tokens))

    def _score_prompt(self, row: Row, logits: Any) -> None:
        """Say how likely the tokens of a piece of a prompt were, the first of all excepted."""
        request, top = row.request, row.request.params.prompt_logprobs
        if row.computed == 0:
            request.prompt_logprobs.append(TokenLogprobs(token=request.prompt[0], logprob=None))
        # Logits say what follows a token; what follows the last is not of the prompt.
        following = request.prompt[row.computed + 1 : row.computed + 1 + len(logits)]
        request.prompt_logprobs += token_logprobs(logits[: len(following)], following, top or 0)

    def _decode_alone(self, row: Row) -> None:
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
            self._counters.add(engine_seconds=perf_counter() - began)

    def _take(self, row: Row, token: int, ahead: int = 0) -> None:
        """Add a token to a text, and end it if it is over.

        Args:
            row: the text.
            token: what comes next.
            ahead: how many more were chosen already.
        """
        request = row.request
        if request.first_token is None:
            request.first_token = monotonic()
        self._counters.add(generated_tokens=1)
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
        else:
            request.progressed()

    # Ends

    def _finish(self, row: Row, reason: str) -> None:
        error: Exception | None = None
        try:
            self._rows.free(row)
        except Exception as raised:  # noqa: BLE001 - handed to those who wait
            reason, error = "error", raised
        self._end(row.request, reason, error)

    def _fail(self, row: Row, error: BaseException) -> None:
        self._rows.running.remove(row)
        # It may be broken, and the error that counts is the first.
        with suppress(Exception):
            self._rows.close(row)
        self._end(row.request, "error", error)

    def _end(self, request: Request, reason: str, error: BaseException | None = None) -> None:
        if request.finish_reason is not None:
            return
        request.finish(reason, error)
        counted = {"cancelled": "cancelled", "timeout": "timed_out", "error": "failed"}
        self._counters.add(**{counted.get(reason, "finished"): 1})
        try:
            self._notify(request)
        except Exception as raised:  # noqa: BLE001 - handed to those who wait
            request.error = request.error or raised
        request.progressed()
