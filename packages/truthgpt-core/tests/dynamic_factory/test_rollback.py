"""Whatever was registered with a factory, undoing it restores what was there."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from truthgpt_core.dynamic_factory import DynamicFactory, FactoryError, register_component
from truthgpt_core.transaction import Transaction


class BaseOptimizer:
    pass


class AdamW(BaseOptimizer):
    pass


class SGD(BaseOptimizer):
    pass


NAMES = st.sampled_from(["a", "b", "c"])
STEPS = st.one_of(
    st.tuples(st.just("register"), NAMES, st.sampled_from([AdamW, SGD]), st.booleans()),
    st.tuples(st.just("open"), NAMES, st.sampled_from([AdamW, SGD]), st.booleans()),
    st.tuples(st.just("lazy"), NAMES, st.sampled_from([AdamW, SGD]), st.booleans()),
    st.tuples(st.just("alias"), NAMES, NAMES, st.booleans()),
    st.tuples(st.just("unregister"), NAMES, st.none(), st.none()),
)


def take(factory, step):
    kind, name, what, replace = step
    with contextlib.suppress(FactoryError):
        if kind == "register":
            factory.register(name, what, replace=replace)
        elif kind == "open":
            register_component(name, replace=replace)(what)
        elif kind == "lazy":
            describe = f"plugin of {what}"
            factory.register_lazy(name, lambda: what, describe=describe, replace=replace)
        elif kind == "alias":
            factory.register_alias(name, what, replace=replace)
        else:
            factory.unregister(name)


def state(factory):
    origins = {name: factory.origin(name) for name in factory.names()}
    return origins, dict(factory.aliases()), DynamicFactory(base_class=BaseOptimizer).names()


@given(st.lists(STEPS, max_size=8), st.lists(STEPS, max_size=12))
def test_a_rollback_leaves_exactly_what_was_there(before, during):
    """Whatever a transaction registers, replaces and removes, undoing it restores all."""
    factory = DynamicFactory(base_class=BaseOptimizer)
    outer, inner = Transaction(), Transaction()
    with outer:
        for step in before:
            take(factory, step)
    earlier = state(factory)
    with inner:
        for step in during:
            take(factory, step)
    inner.rollback()
    assert state(factory) == earlier
    outer.rollback()
    assert state(factory) == ({}, {}, ())


@given(st.lists(STEPS, max_size=8), st.lists(STEPS, max_size=8))
def test_undoing_in_the_other_order_leaves_nothing_either(first, second):
    """Two plugins that come and go in any order leave nothing behind."""
    factory = DynamicFactory(base_class=BaseOptimizer)
    transactions = []
    for steps in (first, second):
        transactions.append(Transaction())
        with transactions[-1]:
            for step in steps:
                take(factory, step)
    for transaction in transactions:
        transaction.rollback()
    assert state(factory) == ({}, {}, ())
