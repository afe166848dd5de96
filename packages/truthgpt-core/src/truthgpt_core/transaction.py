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

from truthgpt_core.errors import TruthGPTError

logger = logging.getLogger(__name__)

Undo = Callable[[], object]

_current: ContextVar[Transaction | None] = ContextVar("truthgpt_transaction", default=None)


class Transaction:
    """Collects undo functions while it is entered; rolls back if its block raises.

    Transactions nest: what an inner one collected when it ends well is undone
    with the outer one. One that has ended may be entered again, and then collects more.

    Args:
        owner: whose registrations they are, for messages: the name of a plugin; that of
            the transaction around it if None.

    Raises:
        TruthGPTError: on being entered while it is entered already.
    """

    def __init__(self, owner: str | None = None) -> None:
        self.owner = owner
        self._undos: list[Undo] = []
        self._outer: Token[Transaction | None] | None = None

    def __enter__(self) -> Transaction:
        if self._outer is not None:
            raise TruthGPTError("This transaction is under way already")
        if self.owner is None:
            self.owner = current_owner()
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
        """Run what was recorded, newest first, once.

        One that raises is logged and the rest run. What is no `Exception`, such as
        KeyboardInterrupt, is raised again after the rest has run.
        """
        interruption: BaseException | None = None
        while self._undos:
            undo = self._undos.pop()
            try:
                undo()
            except Exception:
                logger.exception("Undoing a registration failed: %r", undo)
            except BaseException as error:  # noqa: BLE001 - raised when nothing is left to undo
                interruption = interruption or error
        if interruption is not None:
            raise interruption


def current_owner() -> str | None:
    """Return the name of the plugin that is being activated; None if none is."""
    transaction = _current.get()
    return None if transaction is None else transaction.owner


def record_undo(undo: Undo) -> bool:
    """Tell the transaction that is under way how to take a registration back.

    Returns:
        Whether there is one; if not, the registration is there for good.
    """
    transaction = _current.get()
    if transaction is None:
        return False
    transaction.record(undo)
    return True
