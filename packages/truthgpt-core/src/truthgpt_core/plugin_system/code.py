"""Running code of plugins: whatever it raises is an error of the plugin.

Code that is imported may raise anything, also what no `except Exception` catches:
`SystemExit`, `GeneratorExit`, a `KeyboardInterrupt` of its own. None of it ends the program
that uses the plugin, but a real Ctrl-C does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, TextIO

stdout_is_ours = False
"""Whether this process is the command `truthgpt`, to which standard output belongs."""


class PluginCode:
    """A block that runs code of a plugin; a context manager.

    In the `truthgpt` command, what the block prints goes to standard error: standard output
    belongs to the command, which may print JSON.

    Args:
        refusal: makes the error to raise instead of what the code raised.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C, even if the code took no notice.
    """

    def __init__(self, refusal: Callable[[BaseException], Exception]) -> None:
        self._refusal = refusal
        self._before: Callable[[int, FrameType | None], Any] | None = None
        self._interrupted = False
        self._diverted = contextlib.ExitStack()

    def __enter__(self) -> PluginCode:
        if stdout_is_ours:
            self._diverted.enter_context(_printing_to_stderr())
        # Signals are handled in the main thread alone: in any other, a KeyboardInterrupt is
        # the plugin's own.
        if threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGINT)
            if callable(before):
                self._before = before
                signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The plugin may have put a handler of its own in place.
        if self._before is not None and signal.getsignal(signal.SIGINT) == self._interrupt:
            signal.signal(signal.SIGINT, self._before)
        self._diverted.close()
        if self._interrupted:
            raise KeyboardInterrupt from error
        if error is not None:
            raise self._refusal(error) from error

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        assert self._before is not None
        try:
            self._before(number, frame)
        except KeyboardInterrupt:
            self._interrupted = True
            raise


@contextlib.contextmanager
def _printing_to_stderr() -> Iterator[None]:
    """Send to standard error what is printed, also by C code and by other processes."""
    stdout: TextIO = sys.stdout
    saved: int | None = None
    stdout.flush()
    try:
        saved = os.dup(1)
        os.dup2(2, 1)
    except OSError:
        pass  # one of them is closed
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = stdout
        if saved is not None:
            os.dup2(saved, 1)
            os.close(saved)
