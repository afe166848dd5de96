"""Undoing registrations: what makes activating a plugin all or nothing.

Every function of the core that registers something (a service, a component, an
event handler, a config section) calls `record_undo` with the function that takes
it back. Outside a transaction that does nothing. Inside one, which is how the
plugin manager activates a plugin, the functions are kept: they run in reverse
when activation fails, or later, when the plugin is deactivated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType

logger = logging.getLogger(__name__)

Undo = Callable[[], None]

_current: ContextVar[Transaction | None] = ContextVar("truthgpt_transaction", default=None)


class Transaction:
    """Collects undo functions while it is entered; rolls back if its block raises.

    Transactions nest: what an inner one collected when it ends well is undone
    with the outer one.
    """

    def __init__(self) -> None:
        self._undos: list[Undo] = []
        self._outer: Token[Transaction | None] | None = None

    def __enter__(self) -> Transaction:
        self._outer = _current.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._outer is not None
        _current.reset(self._outer)
        self._outer = None
        if kind is not None:
            self.rollback()
        elif (outer := _current.get()) is not None:
            outer.record(self.rollback)

    def record(self, undo: Undo) -> None:
        """Keep `undo`, to be run before everything recorded earlier."""
        self._undos.append(undo)

    def rollback(self) -> None:
        """Run what was recorded, newest first, once; one that raises is logged and the rest run."""
        while self._undos:
            undo = self._undos.pop()
            try:
                undo()
            except Exception:
                logger.exception("Undoing a registration failed: %r", undo)


def record_undo(undo: Undo) -> None:
    """Tell the transaction that is under way, if there is one, how to take a registration back."""
    transaction = _current.get()
    if transaction is not None:
        transaction.record(undo)
