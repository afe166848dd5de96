"""Turning texts into tokens in several processes."""

from __future__ import annotations

import queue
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from truthgpt_core.child_process import ChildError, ChildProcess
from truthgpt_services.data.chat_template import Chat
from truthgpt_services.data.tokenize import Encoded, TextEncoder
from truthgpt_services.errors import DataError

# Each has a process for itself; threads of their libraries would only be in the way.
_ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


class EncodingPool:
    """Processes that turn texts into tokens; they end with the context.

    They are started as commands, not forked: this process has threads, and a script need not
    guard its main module. The tokenizer reaches them as files, texts as JSON, and tokens come
    back as bytes.

    Args:
        encoder: what each of them does.
        processes: how many.
    """

    def __init__(self, encoder: TextEncoder, processes: int) -> None:
        self._encoder = encoder
        self._processes = processes
        self._stack = ExitStack()
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()

    def __enter__(self) -> EncodingPool:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="truthgpt-"))
            saved = self._encoder.save(Path(folder))
            self._threads = ThreadPoolExecutor(self._processes)
            stack.callback(self._threads.shutdown, cancel_futures=True)
            for _ in range(self._processes):
                worker = _Worker(saved)
                stack.callback(worker.process.end, at_once=True)
                self._free.put(worker)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

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
            return worker.encode(chunk)
        except ChildError as error:
            hint = error.hint and f"{error.hint} Or set tokenizing_processes to fewer."
            raise DataError(error.message, hint=hint) from None
        finally:
            self._free.put(worker)


class _Worker:
    def __init__(self, saved: dict[str, Any]) -> None:
        self._saved: dict[str, Any] | None = saved
        self.process = ChildProcess(
            "truthgpt_services.data.tokenize_worker",
            "A process that tokenizes",
            environment=_ONE_THREAD,
            errors=[DataError],
        )

    def encode(self, chunk: Sequence[str]) -> Encoded:
        if self._saved is not None:
            self.process.call("load", **self._saved)
            self._saved = None
        chats = [number for number, text in enumerate(chunk) if isinstance(text, Chat)]
        content = self.process.call("encode", texts=list(chunk), chats=chats)
        return Encoded.from_bytes(content)
