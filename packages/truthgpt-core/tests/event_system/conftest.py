"""Fixtures: `emitter` is an emitter of the test's own, `shared` that of the process."""

from __future__ import annotations

import pytest

from truthgpt_core.event_system import EventEmitter, get_event_emitter
from truthgpt_core.transaction import Transaction


@pytest.fixture
def emitter():
    return EventEmitter()


@pytest.fixture
def shared():
    """Undo what a test registers with the emitter of the process."""
    transaction = Transaction()
    with transaction:
        yield get_event_emitter()
    transaction.rollback()
