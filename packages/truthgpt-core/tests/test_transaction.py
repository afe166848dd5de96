"""Registrations are undone newest first, once, and only where a transaction is under way."""

from __future__ import annotations

import logging
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_core.errors import TruthGPTError
from truthgpt_core.transaction import Transaction, record_undo


def test_outside_a_transaction_nothing_is_kept() -> None:
    """A registration outside any transaction stays for good."""
    undone: list[str] = []
    record_undo(lambda: undone.append("before"))
    with Transaction() as transaction:
        pass
    transaction.rollback()
    assert undone == []


def test_a_block_that_raises_is_undone_newest_first() -> None:
    """A failure in the block takes back what was registered before it, and is raised."""
    undone: list[str] = []

    def fail() -> None:
        with Transaction():
            record_undo(lambda: undone.append("first"))
            record_undo(lambda: undone.append("second"))
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        fail()
    assert undone == ["second", "first"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_undone_too(error: type[BaseException]) -> None:
    """Ctrl-C in the middle leaves no half of a plugin behind."""
    undone: list[str] = []

    def interrupted() -> None:
        with Transaction():
            record_undo(lambda: undone.append("it"))
            raise error

    with pytest.raises(error):
        interrupted()
    assert undone == ["it"]


def test_a_block_that_ends_well_is_undone_only_on_request() -> None:
    """What was registered stays until `rollback`, which works once."""
    undone: list[str] = []
    with Transaction() as transaction:
        record_undo(lambda: undone.append("it"))
    assert undone == []
    transaction.rollback()
    transaction.rollback()
    assert undone == ["it"]


def test_one_undo_that_raises_does_not_stop_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An undo that fails is logged with its traceback, and the rest run."""
    undone: list[str] = []

    def fail() -> None:
        raise OSError("gone")

    with Transaction() as transaction:
        record_undo(lambda: undone.append("first"))
        record_undo(fail)
        record_undo(lambda: undone.append("third"))
    with caplog.at_level(logging.ERROR, logger="truthgpt_core.transaction"):
        transaction.rollback()
    assert undone == ["third", "first"]
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], OSError)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_undo_that_is_interrupted_does_not_stop_the_others(error: type[BaseException]) -> None:
    """Ctrl-C, or a plugin that exits when it is shut down, passes after all is undone."""
    undone: list[str] = []

    def interrupted() -> None:
        raise error("now")

    with Transaction() as transaction:
        record_undo(lambda: undone.append("first"))
        record_undo(interrupted)
        record_undo(lambda: undone.append("third"))
    with pytest.raises(error, match="now"):
        transaction.rollback()
    assert undone == ["third", "first"]


def test_a_transaction_cannot_be_entered_twice_at_once() -> None:
    """A transaction inside of itself is an error, and the outer one goes on."""
    undone: list[str] = []
    with Transaction() as transaction:
        with pytest.raises(TruthGPTError, match="under way already"), transaction:
            pass
        record_undo(lambda: undone.append("it"))
    transaction.rollback()
    assert undone == ["it"]


def test_a_transaction_that_ended_can_be_entered_again() -> None:
    """What is registered in each of its blocks is undone together."""
    undone: list[str] = []
    with Transaction() as transaction:
        record_undo(lambda: undone.append("first"))
    with transaction:
        record_undo(lambda: undone.append("second"))
    transaction.rollback()
    assert undone == ["second", "first"]


def test_a_registration_knows_whether_it_can_be_taken_back() -> None:
    """`record_undo` says whether there is a transaction that will keep the function."""
    assert not record_undo(print)
    with Transaction():
        assert record_undo(print)


def test_after_the_block_registrations_are_not_its_own() -> None:
    """A transaction keeps what is registered in its block and nothing later."""
    undone: list[str] = []
    with Transaction() as transaction:
        pass
    record_undo(lambda: undone.append("later"))
    transaction.rollback()
    assert undone == []


def test_an_outer_transaction_undoes_the_inner_one() -> None:
    """Undoing the outer of two nested transactions undoes the inner one in its place."""
    undone: list[str] = []
    with Transaction() as outer:
        record_undo(lambda: undone.append("outer, before"))
        with Transaction():
            record_undo(lambda: undone.append("inner"))
        record_undo(lambda: undone.append("outer, after"))
    outer.rollback()
    assert undone == ["outer, after", "inner", "outer, before"]


def test_an_inner_failure_that_is_caught_leaves_the_outer_alone() -> None:
    """An inner transaction that fails is undone at once, and not again with the outer one."""
    undone: list[str] = []

    def fail() -> None:
        with Transaction():
            record_undo(lambda: undone.append("inner"))
            raise ValueError("boom")

    with Transaction() as outer:
        record_undo(lambda: undone.append("outer"))
        with pytest.raises(ValueError, match="boom"):
            fail()
        assert undone == ["inner"]
    outer.rollback()
    assert undone == ["inner", "outer"]


def test_another_thread_is_not_in_the_transaction() -> None:
    """What another thread registers meanwhile is not this transaction's to undo."""
    undone: list[str] = []
    with Transaction() as transaction:
        thread = threading.Thread(target=lambda: record_undo(lambda: undone.append("theirs")))
        thread.start()
        thread.join()
    transaction.rollback()
    assert undone == []


@given(st.recursive(st.integers(), lambda inner: st.lists(inner, max_size=4), max_leaves=20))
def test_any_nesting_is_undone_in_reverse(tree: object) -> None:
    """However transactions nest, undoing the outermost runs everything in reverse, once."""
    done: list[int] = []
    undone: list[int] = []

    def take(node: object) -> None:
        if isinstance(node, list):
            with Transaction():
                for each in node:
                    take(each)
        else:
            number = len(done)
            done.append(number)
            record_undo(lambda: undone.append(number))

    with Transaction() as outermost:
        take(tree)
    outermost.rollback()
    assert undone == done[::-1]
