"""What users of the factories rely on."""

from __future__ import annotations

import abc
import contextlib
import gc
import sys
import threading
import types
import weakref
from typing import Protocol, runtime_checkable

import pytest

from truthgpt_core.dynamic_factory import (
    ComponentLoadError,
    ComponentNameError,
    ComponentTypeError,
    DuplicateComponentError,
    DynamicFactory,
    FactoryError,
    UnknownComponentError,
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


class Unrelated:
    pass


class Abstract(abc.ABC):
    @abc.abstractmethod
    def step(self): ...


@runtime_checkable
class Steps(Protocol):
    speed: int

    def step(self): ...


@pytest.fixture(autouse=True)
def _restored():
    """Take back what a test registers with every factory."""
    transaction = Transaction()
    with transaction:
        yield
    transaction.rollback()


@pytest.fixture
def factory():
    return DynamicFactory(base_class=BaseOptimizer, name="test_factory")


def module_with(**contents):
    module = types.ModuleType("optimizers_module")
    for name, value in contents.items():
        value.__module__ = module.__name__
        setattr(module, name, value)
    return module


def test_the_seeds_example_runs():
    """An open component, then the module that has it, then an instance by name."""
    factory = DynamicFactory(base_class=BaseOptimizer)

    @register_component("adamw")
    class AdamWOptimizer(BaseOptimizer):
        pass

    factory.auto_register_from_module(module_with(AdamWOptimizer=AdamWOptimizer))
    optimizer = factory.create("adamw", lr=0.001)
    assert type(optimizer) is AdamWOptimizer
    assert optimizer.lr == 0.001
    assert factory.names() == ("adamw",)


def test_an_open_component_reaches_factories_made_later():
    """A factory has the open components that were there before it."""
    register_component("adamw")(AdamW)
    assert DynamicFactory(base_class=BaseOptimizer).get_class("adamw") is AdamW


def test_an_open_component_reaches_only_factories_it_satisfies():
    """Another base class, or none, keeps open components out."""
    others = [DynamicFactory(base_class=Unrelated), DynamicFactory(name="callables")]
    register_component("adamw")(AdamW)
    others += [DynamicFactory(base_class=Unrelated), DynamicFactory()]
    assert [other.names() for other in others] == [()] * 4


def test_an_open_component_must_be_a_class():
    """A function satisfies no base class, so it must be bound to a factory."""
    with pytest.raises(ComponentTypeError, match="factory="):
        register_component("cosine")(lambda: None)


def test_open_names_are_unique():
    """Two open classes of one name are refused whichever factories exist."""
    register_component("adamw")(AdamW)
    register_component("adamw")(AdamW)
    with pytest.raises(DuplicateComponentError, match=r"AdamW.*Unrelated"):
        register_component("adamw")(Unrelated)
    register_component("adamw", replace=True)(SGD)
    assert DynamicFactory(base_class=BaseOptimizer).get_class("adamw") is SGD


def test_an_open_component_reaches_all_factories_or_none(factory):
    """If one factory refuses the name, no other has it."""
    other = DynamicFactory(base_class=BaseOptimizer)
    factory.register("adamw", SGD)
    with pytest.raises(DuplicateComponentError):
        register_component("adamw")(AdamW)
    assert other.names() == ()
    assert DynamicFactory(base_class=BaseOptimizer).names() == ()


def test_undoing_an_open_component_reaches_factories_made_since(factory):
    """A rolled back component is in no factory, and what it covered is back."""
    factory.register("adamw", SGD)
    transaction = Transaction()
    with transaction:
        register_component("adamw", replace=True)(AdamW)
        later = DynamicFactory(base_class=BaseOptimizer)
    assert factory.get_class("adamw") is later.get_class("adamw") is AdamW
    transaction.rollback()
    assert factory.get_class("adamw") is SGD
    assert "adamw" not in later


def test_factories_are_not_kept_alive():
    """A factory that nobody holds is gone."""
    gone = weakref.ref(DynamicFactory(base_class=BaseOptimizer))
    gc.collect()
    assert gone() is None


def test_a_component_is_bound_to_one_factory(factory):
    """With factory=, by object or by name, no other factory has the component."""
    other = DynamicFactory(base_class=BaseOptimizer)
    publish_factory(factory)
    register_component("adamw", factory=factory)(AdamW)
    register_component("sgd", factory="test_factory")(SGD)
    assert (factory.names(), other.names()) == (("adamw", "sgd"), ())


def test_published_factories_are_found_by_name(factory):
    """get_factory gives the factory that was published, and makes none."""
    assert publish_factory(factory) is factory
    assert get_factory("test_factory") is factory
    with pytest.raises(UnknownFactoryError, match='Did you mean "test_factory"'):
        get_factory("test_factori")
    with pytest.raises(UnknownFactoryError):
        get_factory("test_factori")


def test_a_published_name_has_one_factory(factory):
    """Another factory of the name is refused unless it replaces the first, until undone."""
    publish_factory(factory)
    other = DynamicFactory(name="test_factory")
    with pytest.raises(FactoryError, match="exists already"):
        publish_factory(other)
    transaction = Transaction()
    with transaction:
        publish_factory(other, replace=True)
    assert get_factory("test_factory") is other
    transaction.rollback()
    assert get_factory("test_factory") is factory


def test_a_factory_without_name_cannot_be_published():
    """Publishing needs a name, and the error says how to give one."""
    with pytest.raises(FactoryError, match="name="):
        publish_factory(DynamicFactory())


def test_the_base_class_is_checked_at_registration(factory):
    """A class of another kind is refused with both names, and not registered."""
    with pytest.raises(ComponentTypeError, match=r"BaseOptimizer.*Unrelated"):
        factory.register("unrelated", Unrelated)
    assert "unrelated" not in factory


def test_an_abstract_class_is_no_component():
    """What cannot be instantiated is refused with what it lacks."""

    class Half(Abstract):
        pass

    with pytest.raises(ComponentTypeError, match="abstract: step"):
        DynamicFactory(base_class=Abstract).register("half", Half)


def test_a_protocol_is_a_base_class():
    """With a protocol, methods and attributes are asked for, not ancestry."""

    class Fits:
        speed = 1

        def step(self): ...

    class Lacks:
        def step(self): ...

    class Inherits(Steps):
        def __init__(self):
            self.speed = 1

    factory = DynamicFactory(base_class=Steps)
    factory.register("fits", Fits)
    factory.register("inherits", Inherits)
    assert isinstance(factory.create("fits"), Fits)
    with pytest.raises(ComponentTypeError, match="lacks speed"):
        factory.register("lacks", Lacks)


def test_a_protocol_must_be_checkable():
    """A protocol without runtime_checkable is refused, with the decorator to add."""

    class Unchecked(Protocol):
        def step(self): ...

    with pytest.raises(ComponentTypeError, match="runtime_checkable"):
        DynamicFactory(base_class=Unchecked)


def test_without_base_class_any_callable_is_a_component():
    """A factory of functions calls them, and refuses what cannot be called."""
    factory = DynamicFactory(name="scheduler_factory")
    factory.register("linear", lambda steps: steps / 2)
    assert factory.create("linear", 4) == 2
    with pytest.raises(ComponentTypeError, match="cannot be called"):
        factory.register("number", 3)


def test_duplicates_need_replace(factory):
    """The same class again is no duplicate; another is, unless it replaces."""
    factory.register("adamw", AdamW)
    factory.register("adamw", AdamW)
    with pytest.raises(DuplicateComponentError, match=r"AdamW.*SGD"):
        factory.register("adamw", SGD)
    factory.register("adamw", SGD, replace=True)
    assert factory.get_class("adamw") is SGD


def test_registrations_are_undone_in_any_order(factory):
    """Undoing what was replaced leaves what replaced it."""
    first, second = Transaction(), Transaction()
    with first:
        factory.register("adamw", AdamW)
    with second:
        factory.register("adamw", SGD, replace=True)
    first.rollback()
    assert factory.get_class("adamw") is SGD
    second.rollback()
    assert "adamw" not in factory


def test_unknown_names_list_what_exists(factory):
    """A misspelt name gets a suggestion and the list."""
    factory.register("adamw", AdamW)
    factory.register("sgd", SGD)
    with pytest.raises(UnknownComponentError, match=r'mean "adamw".*adamw, sgd'):
        factory.create("adamv")


@pytest.mark.parametrize("name", ["os.system", "os:system", "os/system"])
def test_an_import_path_is_never_resolved(factory, name):
    """A dotted path is refused with the reason."""
    with pytest.raises(ComponentNameError, match="only registered names"):
        factory.create(name)


@pytest.mark.parametrize("name", ["", "a.b", "a b", "-a", None])
def test_unsuitable_names_are_refused(factory, name):
    """A name that could not be told from a path cannot be registered."""
    with pytest.raises(ComponentNameError):
        factory.register(name, AdamW)


def test_unregistering_takes_a_component_out(factory):
    """An unregistered name is unknown and free; undone, it is back."""
    factory.register("adamw", AdamW)
    transaction = Transaction()
    with transaction:
        factory.unregister("adamw")
        factory.register("adamw", SGD)
    transaction.rollback()
    assert factory.get_class("adamw") is AdamW
    factory.unregister("adamw")
    with pytest.raises(UnknownComponentError):
        factory.unregister("adamw")


def test_an_alias_stands_for_a_component(factory):
    """An alias creates its component, is listed apart, and may be given twice."""
    factory.register("adamw", AdamW)
    factory.register_alias("adam", "adamw")
    factory.register_alias("adam", "adamw")
    assert isinstance(factory.create("adam"), AdamW)
    assert (factory.names(), dict(factory.aliases())) == (("adamw",), {"adam": "adamw"})
    with pytest.raises(DuplicateComponentError, match="alias"):
        factory.register("adam", SGD)


def test_an_alias_is_of_something(factory):
    """An alias needs a component, and cannot take its component's own name."""
    with pytest.raises(UnknownComponentError):
        factory.register_alias("adam", "adamw")
    factory.register("adamw", AdamW)
    with pytest.raises(DuplicateComponentError):
        factory.register_alias("adamw", "adamw", replace=True)
    assert factory.get_class("adamw") is AdamW


def test_a_module_gives_its_own_concrete_classes(factory):
    """Bases, imports, private and foreign classes stay out; names are said or in snake_case."""

    class HTTPOptimizerV2(BaseOptimizer):
        pass

    class Named(BaseOptimizer):
        name = "called"

    class Heir(Named):
        pass

    class Hidden(BaseOptimizer):
        pass

    class Foreign:
        pass

    module = module_with(
        HTTPOptimizerV2=HTTPOptimizerV2, Named=Named, Heir=Heir, _Hidden=Hidden, Foreign=Foreign
    )
    module.Imported = AdamW
    assert factory.auto_register_from_module(module) == ("http_optimizer_v2", "called", "heir")
    assert factory.auto_register_from_module(module) == ()


def test_a_module_is_registered_whole_or_not_at_all(factory):
    """A conflict in the middle of a module leaves nothing of it behind."""

    class First(BaseOptimizer):
        pass

    class Second(BaseOptimizer):
        name = "taken"

    factory.register("taken", AdamW)
    with pytest.raises(DuplicateComponentError):
        factory.auto_register_from_module(module_with(First=First, Second=Second))
    assert factory.names() == ("taken",)


def test_a_module_needs_a_base_class_to_choose_by():
    """Without a base class, components cannot be told from the rest of a module."""
    with pytest.raises(ComponentTypeError, match="no base class"):
        DynamicFactory().auto_register_from_module(module_with())


def test_a_lazy_component_is_loaded_on_first_use(factory):
    """Listing and describing load nothing; the first use loads once."""
    loads = []
    factory.register_lazy("adamw", lambda: loads.append(1) or AdamW, describe="plugin x")
    assert (factory.names(), factory.origin("adamw"), loads) == (("adamw",), "plugin x", [])
    assert isinstance(factory.create("adamw"), AdamW)
    assert factory.get_class("adamw") is AdamW
    assert loads == [1]


def test_a_loader_that_fails_is_named_and_tried_again(factory):
    """The error names component, origin and cause; a later try may succeed."""
    results = [ImportError("no torch here"), AdamW]

    def load():
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    factory.register_lazy("adamw", load, describe="plugin x")
    with pytest.raises(ComponentLoadError, match=r'"adamw".*plugin x.*no torch here') as caught:
        factory.create("adamw")
    assert isinstance(caught.value.__cause__, ImportError)
    assert factory.get_class("adamw") is AdamW


def test_what_is_loaded_is_checked(factory):
    """A loader of the wrong class is found out when it is used, with its origin."""
    factory.register_lazy("adamw", lambda: Unrelated, describe="plugin x")
    with pytest.raises(ComponentTypeError, match="plugin x"):
        factory.get_class("adamw")


def test_a_lazy_component_may_be_registered_by_its_own_module(factory):
    """The decorator in the module that the loader imports is no duplicate."""

    def load():
        return register_component("adamw")(AdamW)

    factory.register_lazy("adamw", load, describe="plugin x")
    assert factory.get_class("adamw") is AdamW


def test_discovering_what_is_imported_already_is_no_duplicate(factory, monkeypatch):
    """A lazy registration with its target recognizes the class, and loads nothing."""
    monkeypatch.setitem(sys.modules, "optimizers_module", types.SimpleNamespace(AdamW=AdamW))
    factory.register("adamw", AdamW)
    for target in (None, "optimizers_module:SGD", "not_imported:AdamW"):
        with pytest.raises(DuplicateComponentError):
            factory.register_lazy("adamw", pytest.fail, describe="x", target=target)
    factory.register_lazy("adamw", pytest.fail, describe="x", target="optimizers_module:AdamW")
    assert factory.get_class("adamw") is AdamW


def test_two_lazy_components_of_one_name_conflict(factory):
    """Two origins are both named; the same origin again is no duplicate, loaded or not."""
    factory.register_lazy("adamw", lambda: AdamW, describe="plugin x")
    factory.register_lazy("adamw", lambda: AdamW, describe="plugin x")
    with pytest.raises(DuplicateComponentError, match=r"plugin x.*plugin y"):
        factory.register_lazy("adamw", lambda: AdamW, describe="plugin y")
    factory.get_class("adamw")
    factory.register_lazy("adamw", pytest.fail, describe="plugin x")
    assert factory.get_class("adamw") is AdamW


def test_racing_first_uses_agree(factory):
    """Threads that load a component at once all get the same class."""
    start = threading.Barrier(4, timeout=10)

    def load():
        with contextlib.suppress(threading.BrokenBarrierError):
            start.wait()
        return type("Made", (BaseOptimizer,), {})

    factory.register_lazy("made", load, describe="plugin x")
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(factory.get_class("made")), daemon=True)
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    assert len(found) == 4
    assert len(set(found)) == 1
