"""Turning texts into tokens in several processes."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from truthgpt_core.errors import in_one_line
from truthgpt_services.data.tokenize import Encoded, TextEncoder
from truthgpt_services.errors import DataError

_SECONDS_TO_END = 10.0
# Each has a process for itself; threads of their libraries would only be in the way.
_ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


class EncodingPool:
    """Processes that turn texts into tokens; they end with the context.

    They are started as commands, not forked: this process has threads, and a script need not
    guard its main module.

    Args:
        encoder: what each of them does.
        processes: how many.

    Raises:
        DataError: the tokenizer cannot be sent to another process.
    """

    def __init__(self, encoder: TextEncoder, processes: int) -> None:
        try:
            self._encoder = pickle.dumps(encoder, protocol=pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # whatever a tokenizer's state raises
            raise _not_sent(in_one_line(error)) from error
        self._processes = processes
        self._workers: list[_Worker] = []
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()

    def __enter__(self) -> EncodingPool:
        for _ in range(self._processes):
            worker = _Worker()
            self._workers.append(worker)
            self._free.put(worker)
        self._threads = ThreadPoolExecutor(self._processes)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.end(at_once=kind is not None)
        self._threads.shutdown(cancel_futures=True)

    def encode(self, chunks: Iterable[Sequence[str]]) -> Iterator[Encoded]:
        """Yield the tokens of each chunk, in the order of the chunks.

        Raises:
            DataError: a text cannot be encoded, or a process ended.
        """
        waiting: deque[Future[Encoded]] = deque()
        for chunk in chunks:
            waiting.append(self._threads.submit(self._encode, chunk))
            if len(waiting) > 2 * self._processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _encode(self, chunk: Sequence[str]) -> Encoded:
        worker = self._free.get()
        try:
            return worker.encode(self._encoder, chunk)
        finally:
            self._free.put(worker)


class _Worker:
    def __init__(self) -> None:
        self._ready = False
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "truthgpt_core.child_process",
                "truthgpt_services.data.tokenize_worker",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | _ONE_THREAD,
        )

    def encode(self, encoder: bytes, chunk: Sequence[str]) -> Encoded:
        if not self._ready:
            answer, what = self._ask(encoder)
            if answer == "failed":
                raise _not_sent(what)
            self._ready = True
        answer, what = self._ask(pickle.dumps(list(chunk), protocol=pickle.HIGHEST_PROTOCOL))
        if answer == "refused":
            raise DataError(what[0], hint=what[1])
        if answer == "failed":
            raise DataError(f"Texts cannot be tokenized: {what}")
        encoded: Encoded = what
        return encoded

    def _ask(self, request: bytes) -> tuple[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
            answer: tuple[str, Any] = pickle.load(self._process.stdout)  # noqa: S301 - our own
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            raise self._gone() from None
        return answer

    def _gone(self) -> DataError:
        code = self._process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        hint = None
        if code == -signal.SIGKILL:
            hint = "Most likely this machine has too little memory: use fewer processes."
        return DataError(f"A process that tokenizes ended with {how}", hint=hint)

    def end(self, *, at_once: bool) -> None:
        if at_once:
            self._process.kill()
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _not_sent(why: str) -> DataError:
    return DataError(
        f"The tokenizer cannot be sent to another process: {why}",
        hint="Tokenize in this one: tokenizing_processes=1.",
    )
