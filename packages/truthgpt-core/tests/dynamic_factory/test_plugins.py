"""Components and the plugins that bring them: shared, taken back, and never imported by path."""

from __future__ import annotations

import contextvars
import gc
import sys
import types
import weakref
from pathlib import Path
from typing import Protocol, runtime_checkable

import pytest

from truthgpt_core import hookimpl
from truthgpt_core.dynamic_factory import (
    ComponentNameError,
    ComponentTypeError,
    DuplicateComponentError,
    DynamicFactory,
    FactoryError,
    UnknownFactoryError,
    get_factory,
    publish_factory,
    register_component,
)
from truthgpt_core.transaction import Transaction


class BaseOptimizer:
    def __init__(self, lr=0.1):
        self.lr = lr


class AdamW(BaseOptimizer):
    pass


class SGD(BaseOptimizer):
    pass


@runtime_checkable
class Steps(Protocol):
    def step(self): ...


class Stepping:
    def step(self):
        return 1


@pytest.fixture(autouse=True)
def _restored():
    """Take back what a test registers with every factory."""
    with Transaction() as transaction:
        yield
    transaction.rollback()


@pytest.fixture
def factory():
    return DynamicFactory(base_class=BaseOptimizer, name="test_factory")


def test_an_open_component_reaches_every_factory_it_satisfies():
    """Whatever the base is, a class, a parent of it or a protocol, made before or after."""
    bases = (BaseOptimizer, AdamW, object, Steps)
    before = [DynamicFactory(base_class=base) for base in bases]
    register_component("adamw")(AdamW)
    register_component("stepping")(Stepping)
    after = [DynamicFactory(base_class=base) for base in bases]
    for factories in (before, after):
        assert [factory.names() for factory in factories] == [
            ("adamw",),
            ("adamw",),
            ("adamw", "stepping"),
            ("stepping",),
        ]


def test_components_come_through_the_hook_of_a_plugin(manager):
    """A plugin registers in the manager's factories, and its components go with it."""

    class Plugin:
        @hookimpl
        def register_components(self, factories):
            factories["optimizer_factory"].register("adamw", AdamW)

    factory = manager.factories["optimizer_factory"]
    manager.register_plugin(Plugin(), "optimizers")
    assert factory.create("adamw", lr=0.5).lr == 0.5
    manager.deactivate("optimizers")
    assert "adamw" not in factory


def by_register(factory):
    factory.register("adam_w", AdamW)


def by_decorator(factory):
    register_component("adam_w", factory=factory)(AdamW)


def opened(factory):
    register_component("adam_w")(AdamW)


def lazily(factory):
    described, target = f"{AdamW.__module__}.AdamW", f"{AdamW.__module__}:AdamW"
    factory.register_lazy("adam_w", lambda: AdamW, describe=described, target=target)


def from_module(factory):
    module = types.ModuleType(AdamW.__module__)
    module.AdamW = AdamW
    factory.auto_register_from_module(module)


WAYS = [by_register, by_decorator, opened, lazily, from_module]


@pytest.mark.parametrize("second", WAYS)
@pytest.mark.parametrize("first", WAYS)
def test_two_plugins_may_register_the_same_component(factory, first, second):
    """A component that two plugins register, each in its way, stays until both are gone."""
    with Transaction() as one:
        first(factory)
    with Transaction() as other:
        second(factory)
    one.rollback()
    assert factory.get_class("adam_w") is AdamW
    other.rollback()
    assert factory.names() == ()


def test_the_same_alias_of_two_plugins_stays_until_both_are_gone(factory):
    """An alias that two plugins register is there as long as one of them is."""
    factory.register("adamw", AdamW)
    with Transaction() as one:
        factory.register_alias("adam", "adamw")
    with Transaction() as other:
        factory.register_alias("adam", "adamw")
    one.rollback()
    assert factory.get_class("adam") is AdamW
    other.rollback()
    assert "adam" not in factory


def test_a_component_registered_lazily_again_is_not_loaded_again(factory):
    """A second plugin with the same entry point gets the class that was loaded for the first."""
    loads = []

    def load():
        loads.append(1)
        return AdamW

    for _ in range(2):
        with Transaction():
            factory.register_lazy("adamw", load, describe="plugin x")
            factory.get_class("adamw")
    assert loads == [1]


def test_a_factory_is_published_until_the_last_who_did_is_gone(factory):
    """Published by three plugins, of which two replace the other's, it is as the rest says."""
    other = DynamicFactory(name="test_factory")
    published = []
    for each in (factory, other, factory):
        with Transaction() as transaction:
            publish_factory(each, replace=True)
        published.append(transaction)
    published[0].rollback()
    assert get_factory("test_factory") is factory
    published[2].rollback()
    assert get_factory("test_factory") is other
    published[1].rollback()
    with pytest.raises(UnknownFactoryError):
        get_factory("test_factory")


def test_a_factory_that_two_plugins_publish_stays_until_both_are_gone(factory):
    """A factory that is published again is found as long as one of those who did is there."""
    with Transaction() as one:
        publish_factory(factory)
    with Transaction() as other:
        publish_factory(factory)
    one.rollback()
    assert get_factory("test_factory") is factory
    other.rollback()
    with pytest.raises(UnknownFactoryError):
        get_factory("test_factory")


def test_registering_for_good_again_and_again_keeps_nothing(factory):
    """Outside of a transaction, what is replaced is forgotten, also by the collector."""

    def register():
        cls = type("Once", (BaseOptimizer,), {})
        factory.register("adamw", cls, replace="adamw" in factory)
        return weakref.ref(cls)

    first = contextvars.Context().run(register)
    contextvars.Context().run(register)
    gc.collect()
    assert first() is None


def test_a_dotted_path_imports_nothing(factory, tmp_path: Path, monkeypatch):
    """A name from a configuration never runs code, wherever a name is asked for."""
    (tmp_path / "trap_of_the_factory_test.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = "trap_of_the_factory_test.Trap"
    for ask in (
        factory.create,
        factory.get_class,
        factory.origin,
        factory.unregister,
        lambda name: factory.create_from_config({"name": name}),
        lambda name: factory.register_alias("alias", name),
        lambda name: factory.register_alias(name, "alias"),
        lambda name: factory.register(name, AdamW),
    ):
        with pytest.raises(FactoryError):
            ask(path)
        assert path not in factory
    assert "trap_of_the_factory_test" not in sys.modules


@pytest.mark.parametrize("name", [None, 3, [], {}, AdamW])
def test_a_name_that_is_no_string_is_told(factory, name):
    """What is not even a string is refused in one line, wherever a name is asked for."""
    for ask in (factory.create, factory.get_class, factory.origin, factory.unregister):
        with pytest.raises(ComponentNameError, match="cannot name a component"):
            ask(name)
    assert name not in factory


def test_a_bound_component_is_checked_against_its_factory(factory):
    """The decorator with factory= refuses a class of another kind, and a name that is taken."""
    with pytest.raises(ComponentTypeError, match="Stepping"):
        register_component("stepping", factory=factory)(Stepping)
    register_component("adamw", factory=factory)(AdamW)
    with pytest.raises(DuplicateComponentError, match=r"AdamW.*SGD"):
        register_component("adamw", factory=factory)(SGD)
    register_component("adamw", factory=factory, replace=True)(SGD)
    assert factory.get_class("adamw") is SGD
