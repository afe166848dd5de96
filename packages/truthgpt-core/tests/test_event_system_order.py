"""The order of handlers, whatever is registered and removed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from truthgpt_core.event_system import EventEmitter, EventType
from truthgpt_core.transaction import Transaction

STEP = EventType.TRAINING_STEP


@given(
    st.lists(
        st.tuples(st.integers(-2, 2), st.sampled_from([None, STEP, EventType.MODEL_LOADED])),
        max_size=12,
    )
)
def test_the_order_is_by_priority_then_registration(registrations):
    """Whatever is registered, handlers run sorted by (-priority, registration)."""
    emitter, order = EventEmitter(), []
    for number, (priority, event_type) in enumerate(registrations):
        emitter.on(event_type, lambda event, n=number: order.append(n), priority=priority)
    emitter.emit(STEP)
    expected = [
        (-priority, number)
        for number, (priority, event_type) in enumerate(registrations)
        if event_type in (None, STEP)
    ]
    assert order == [number for _, number in sorted(expected)]


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(-1, 1)), max_size=20),
    st.integers(0, 20),
)
def test_adding_and_removing_follow_a_simple_model(steps, kept):
    """Any sequence of adding and removing delivers as a sorted list would; undone, as before."""
    emitter, heard, model, handles = EventEmitter(), [], {}, {}

    def deliver():
        heard.clear()
        emitter.emit(STEP)
        return list(heard)

    def apply(part, offset):
        for number, (add, which, priority) in enumerate(part, offset):
            if add:
                handles[number] = emitter.on(
                    STEP, lambda event, n=number: heard.append(n), priority=priority
                )
                model[number] = (-priority, number)
            elif model:
                victim = sorted(model)[which % len(model)]
                assert handles[victim].remove()
                del model[victim]
            assert deliver() == sorted(model, key=model.__getitem__)

    apply(steps[:kept], 0)
    before = deliver()
    transaction = Transaction()
    with transaction:
        apply(steps[kept:], kept)
    transaction.rollback()
    assert deliver() == before
