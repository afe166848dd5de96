"""How many texts an engine that chooses tokens itself is asked for, and by which threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

from truthgpt_plugin_serve.errors import overloaded

_Made = TypeVar("_Made")


class Places:
    """Places at an engine that chooses tokens itself: it has no scheduler that others wait for.

    For the event loop alone. A place is held from the first token of a request to its end, by a
    thread, which waits for the engine.

    Args:
        at_once: how many requests the engine is asked at once.
        waiting: how many further texts may wait.

    Attributes:
        texts: how many are asked for, those that wait included.
        running: how many places are taken.
    """

    def __init__(self, at_once: int, waiting: int) -> None:
        self.texts = 0
        self.running = 0
        self._most = at_once + waiting
        self._free = asyncio.Semaphore(at_once)
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = 0

    def enter(self, texts: int) -> None:
        """Count texts that are asked for.

        Raises:
            ApiError: too many wait already.
        """
        if self.texts + texts > self._most:
            raise overloaded(f"{self.texts} texts are asked for or wait, which is the limit")
        self.texts += texts

    def leave(self, texts: int) -> None:
        """Count texts that ended."""
        self.texts -= texts

    async def take(self) -> None:
        """Wait for a place."""
        await self._free.acquire()
        self.running += 1

    def give(self) -> None:
        """Give a place back."""
        self.running -= 1
        self._free.release()

    def ask(self, work: Callable[[], _Made]) -> asyncio.Future[_Made]:
        """Do work in a thread; only who has a place may ask."""
        done: Future[_Made] = Future()

        def do() -> None:
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(work())
                except BaseException as error:  # noqa: BLE001 - raised where it is awaited
                    done.set_exception(error)

        if self._threads < self.running:
            self._threads += 1
            # The process may end while an engine is waited for.
            threading.Thread(target=self._run, name="ask engine", daemon=True).start()
        self._work.put(do)
        return asyncio.wrap_future(done)

    def close(self) -> None:
        """End the threads, each when the engine has given it something."""
        for _ in range(self._threads):
            self._work.put(None)

    def _run(self) -> None:
        while (do := self._work.get()) is not None:
            do()
