"""Any program of registrations is undone without a trace.

A machine registers, replaces and removes services, event handlers, components, factories
and config sections, in transactions that nest, fail, and are rolled back later in any order,
while services are in use and built on one another. After every step, all that can be seen of
the registries is what a model of a few lines says: of each name, the newest registration that
was not taken back is in force.
"""

from __future__ import annotations

import contextvars
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from truthgpt_core.config import ConfigSections, Section, json_schema
from truthgpt_core.dynamic_factory import (
    DynamicFactory,
    FactoryError,
    get_factory,
    publish_factory,
    register_component,
)
from truthgpt_core.errors import TruthGPTError
from truthgpt_core.event_system import EventEmitter, EventType
from truthgpt_core.service_registry import ServiceContainer, ServiceError
from truthgpt_core.transaction import Transaction

pytestmark = pytest.mark.slow

STEPS: dict[str, tuple[set[str], dict[str, st.SearchStrategy[Any]]]] = {}
NAMES = "abc"
KINDS = (EventType.TRAINING_STEP, EventType.MODEL_LOADED)
SECTIONS = ("machine_alpha", "machine_beta")
PUBLISHED = "factory_of_the_transaction_machine"

names = st.sampled_from(NAMES)
some_names = st.lists(names, unique=True, max_size=2)
# What is refused, and what stays for good, makes programs shorter: it comes seldom.
mostly = st.integers(0, 3).map(bool)
seldom = mostly.map(lambda drawn: not drawn)
hows = st.tuples(mostly, seldom)  # replacing, for good
recipes = st.tuples(some_names, st.sampled_from([True, True, False]))
one_of_two = st.integers(0, 1)
classes = st.deferred(lambda: st.sampled_from([Hammer, Saw]))


class Tool:
    pass


class Hammer(Tool):
    pass


class Saw(Tool):
    pass


class Small(Section):
    small: int = 1


class Large(Section):
    large: int = 2


class Made:
    """A service: the number of its recipe, and the services that it was given."""

    def __init__(self, name: str, number: int, parts: tuple[Any, ...]) -> None:
        self.name, self.number, self.parts = name, number, parts
        self.closed = False

    def close(self) -> None:
        assert not self.closed, f"{self.told()} is closed twice"
        assert self.usable(), f"{self.told()} is closed after what it was built on"
        self.closed = True

    def usable(self) -> bool:
        parts = (part for part in self.parts if isinstance(part, Made))
        return not self.closed and all(part.usable() for part in parts)

    def told(self) -> tuple[Any, ...]:
        parts = (part.told() if isinstance(part, Made) else part for part in self.parts)
        return (self.name, self.number, *parts)


class Recipe:
    """What is registered as a service: a function, and whether it is a singleton."""

    def __init__(self, number: int, name: str, drawn: Any) -> None:
        needs, self.singleton = drawn
        # Cycles would make most graphs faulty.
        needs = sorted((need for need in needs if need > name), reverse=True)

        def made(*injected: Any) -> Made:
            return Made(name, number, injected)

        # A few have no defaults, so that some graphs are faulty.
        default = "=None" if number % 4 else ""
        parameters = ", ".join(f"{need}{default}" for need in needs)
        scope: dict[str, Any] = {"made": made}
        exec(f"def make({parameters}): return made({', '.join(needs)})", scope)
        self.make: Callable[..., Made] = scope["make"]


def got(get: Callable[[str], Any], name: str) -> Any:
    """Return a service, or the type of the error that there is instead."""
    try:
        service = get(name)
    except ServiceError as error:
        return type(error)
    assert service.usable(), f"{service.told()} is in use after it was closed"
    return service


def seen(container: ServiceContainer) -> tuple[Any, ...]:
    """Return all that can be seen of a container's services."""
    try:
        container.registry.validate()
    except ServiceError as error:
        return container.graph(), type(error), str(error)
    services = [got(container.get, name) for name in NAMES]
    return container.graph(), *[one.told() if isinstance(one, Made) else one for one in services]


def published() -> DynamicFactory[Any] | None:
    try:
        return get_factory(PUBLISHED)
    except FactoryError:
        return None


def step(*registries: str, **drawn: st.SearchStrategy[Any]) -> Callable[[Any], Any]:
    """Let a method be a step of programs that use one of the registries, or of all."""

    def decorate(method: Any) -> Any:
        STEPS[method.__name__] = set(registries), drawn
        return method

    return decorate


class Registrations(RuleBasedStateMachine):
    """The registries, and a model of them.

    In the model, every name of every registry has a pile of registrations; a removal is
    one, of None. A transaction knows its own, and rolling it back takes them out of
    the piles, wherever they lie.
    """

    used: ClassVar[frozenset[str]] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.changed: set[str] = set()
        self.piles: dict[tuple[Any, ...], list[tuple[object, Any]]] = defaultdict(list)
        self.open: list[tuple[Transaction, list[tuple[Any, object]]]] = []
        self.ended: list[tuple[Transaction, list[tuple[Any, object]]]] = []
        self.count = 0
        self.container = ServiceContainer()
        self.emitter = EventEmitter()
        self.heard: list[int] = []
        self.handles: list[Any] = []
        self.sections = ConfigSections()
        self.factories = [DynamicFactory(Tool), DynamicFactory(Tool)]
        self.publishable = [DynamicFactory(name=PUBLISHED) for _ in range(2)]
        self.begin()  # around everything, for the registries that the process shares

    @initialize(drawn=st.tuples(recipes, recipes, recipes))
    def register_services(self, drawn: Any) -> None:
        for name, one in zip(NAMES, drawn if "services" in self.used else (), strict=False):
            self.register_service(name, one, again=False, how=(False, True))

    @rule(data=st.data())
    def take_steps(self, data: st.DataObject) -> None:
        """Take steps, some of them in a transaction of their own."""
        usable = [name for name in STEPS if not STEPS[name][0] or STEPS[name][0] & self.used]
        for _ in range(5):
            name = data.draw(st.sampled_from(usable), label="step")
            registries, strategies = STEPS[name]
            drawn = {key: data.draw(strategy, label=key) for key, strategy in strategies.items()}
            apart = bool(registries) and data.draw(st.booleans(), label="apart")
            if apart:
                self.begin()
            getattr(self, name)(**drawn)
            if apart:
                self.end(well=True)
            self.changed |= registries
            self.check(services=not registries or data.draw(mostly, label="look"))

    def teardown(self) -> None:
        for transaction, _ in reversed(self.open):
            transaction.__exit__(LookupError, LookupError("the end"), None)
        self.container.close()
        self.factories.clear()  # a factory has open components for as long as it is alive
        assert DynamicFactory(Tool).names() == ()
        assert published() is None
        assert not set(SECTIONS) & set(json_schema(sections=self.sections)["properties"])

    # The model

    def pile(self, key: tuple[Any, ...], value: Any, *, for_good: bool = False) -> None:
        token = object()
        self.piles[key].append((token, value))
        if not for_good:
            self.open[-1][1].append((key, token))

    def attempt(self, act: Any, allowed: bool, key: Any, value: Any, for_good: Any = False) -> None:
        """Register or remove something: outside of every transaction, if it is for good."""
        if allowed:
            contextvars.Context().run(act) if for_good else act()
            self.pile(key, value, for_good=for_good)
        else:
            with pytest.raises(TruthGPTError):
                act()

    def top(self, *key: Any) -> Any:
        pile = self.piles[key]
        return pile[-1][1] if pile else None

    # Transactions

    @step()
    def begin(self) -> None:
        if len(self.open) == 4:  # deeper down, little would ever be taken back
            return
        transaction = Transaction()
        transaction.__enter__()
        self.open.append((transaction, []))

    @step(well=st.booleans())
    def end(self, well: bool) -> None:
        if len(self.open) == 1:
            return
        transaction, tokens = self.open.pop()
        if well:
            transaction.__exit__(None, None, None)
            self.open[-1][1].extend(tokens)
            self.ended.append((transaction, tokens))
        else:
            transaction.__exit__(LookupError, LookupError("activation failed"), None)
            self.take_back(tokens)

    @step(which=st.integers(0, 9))
    def undo(self, which: int) -> None:
        if not self.ended:
            return
        transaction, tokens = self.ended.pop(which % len(self.ended))
        transaction.rollback()
        self.take_back(tokens)

    def take_back(self, tokens: list[tuple[Any, object]]) -> None:
        for key, token in tokens:
            self.piles[key] = [entry for entry in self.piles[key] if entry[0] is not token]
        self.changed = set(self.used)

    # Services

    def recipe(self, name: str, drawn: Any) -> Recipe:
        self.count += 1
        return Recipe(self.count, name, drawn)

    @step("services", name=names, drawn=recipes, again=seldom, how=hows)
    def register_service(self, name: str, drawn: Any, again: bool, how: Any) -> None:
        replace, for_good = how
        present = self.top("service", name)
        recipe = self.recipe(name, drawn)
        recipe = present if again and present else recipe

        def register() -> None:
            self.container.register(name, recipe.make, recipe.singleton, replace=replace)

        allowed = present is not None if replace else present in (None, recipe)
        self.attempt(register, allowed, ("service", name), recipe, for_good)

    # Events

    @step(
        "events", kind=st.sampled_from([None, *KINDS]), priority=st.integers(-1, 1), for_good=seldom
    )
    def add_handler(self, kind: EventType | None, priority: int, for_good: bool) -> None:
        number = len(self.handles)

        def add() -> None:
            def handler(event: Any) -> None:
                self.heard.append(number)

            self.handles.append(self.emitter.on(kind, handler, priority=priority))

        self.attempt(add, True, ("handler", number), (kind, -priority), for_good)

    @step("events", which=st.integers(0, 9))
    def remove_handler(self, which: int) -> None:
        if not self.handles:
            return
        number = which % len(self.handles)
        if self.top("handler", number) is None:
            assert not self.handles[number].remove()
        else:
            self.attempt(self.handles[number].remove, True, ("handler", number), None, False)

    # Components

    @step("components", which=one_of_two, name=names, cls=classes, how=hows, lazy=seldom)
    def register_bound(self, which: int, name: str, cls: type, how: Any, lazy: bool) -> None:
        replace, for_good = how
        key, factory = ("component", which, name), self.factories[which]
        register = partial(factory.register, name, cls, replace=replace)
        if lazy and replace:
            loader = partial(factory.register_lazy, name, lambda: cls, describe="a loader")
            register = partial(loader, replace=True)
        top = self.top(*key)
        allowed = top is not None if replace else top in (None, cls)
        self.attempt(register, allowed, key, cls, for_good)

    @step("components", name=names, cls=classes, replace=mostly)
    def register_open(self, name: str, cls: type, replace: bool) -> None:
        keys = [("open", name), ("component", 0, name), ("component", 1, name)]
        allowed = replace or {self.top(*key) for key in keys} <= {None, cls}
        register = partial(register_component(name, replace=replace), cls)
        self.attempt(register, allowed, keys[0], cls)
        for key in keys[1:] if allowed else []:
            self.pile(key, cls)

    @step("components", name=names, which=one_of_two)
    def unregister_component(self, name: str, which: int) -> None:
        key = ("component", which, name)
        unregister = partial(self.factories[which].unregister, name)
        self.attempt(unregister, self.top(*key) is not None, key, None)

    @step("components", alias=names, name=names, which=one_of_two)
    def register_alias(self, alias: str, name: str, which: int) -> None:
        key = ("component", which, alias)
        register = partial(self.factories[which].register_alias, alias, name)
        target = self.top("component", which, name)
        if isinstance(target, str):  # an alias of an alias is one of what that stands for
            name, target = target, self.top("component", which, target)
        allowed = isinstance(target, type) and self.top(*key) in (None, name)
        self.attempt(register, allowed, key, name)

    @step("factories", which=one_of_two, replace=mostly)
    def publish(self, which: int, replace: bool) -> None:
        factory = self.publishable[which]
        allowed = replace or self.top("factory") in (None, factory)
        publish = partial(publish_factory, factory, replace=replace)
        self.attempt(publish, allowed, ("factory",), factory)

    # Sections

    @step("sections", name=st.sampled_from(SECTIONS), model=st.sampled_from([Small, Large]))
    def register_section(self, name: str, model: type[Section]) -> None:
        key = ("section", name)
        register = partial(self.sections.register, name, model)
        self.attempt(register, self.top(*key) in (None, model), key, model)

    # What can be seen

    def check(self, services: bool) -> None:
        """Compare what changed with the model; after a rollback, everything."""
        # Not looked at, services are not built before the next step.
        unseen = set() if services else {"services"}
        changed, self.changed = self.changed - unseen, self.changed & unseen
        if "services" in changed:
            self.services_are_as_in_a_new_container()
        if "events" in changed:
            self.handlers_are_called_in_order()
        if "components" in changed:
            self.components_are_created_by_name()
        if "factories" in changed:
            assert published() is self.top("factory")
        if "sections" in changed:
            self.sections_are_in_the_schema()

    def services_are_as_in_a_new_container(self) -> None:
        tops = {name: self.top("service", name) for name in NAMES}
        registered = {name: recipe for name, recipe in tops.items() if recipe}
        assert self.container.registry.names() == tuple(sorted(registered))
        found = seen(self.container)
        with ServiceContainer() as fresh:
            for name, recipe in registered.items():
                fresh.register(name, recipe.make, recipe.singleton)
            assert found == seen(fresh)

    def handlers_are_called_in_order(self) -> None:
        tops = {number: self.top("handler", number) for number in range(len(self.handles))}
        for kind in KINDS:
            self.heard.clear()
            self.emitter.emit(kind)
            heard = [number for number in tops if tops[number] and tops[number][0] in (None, kind)]
            assert self.heard == sorted(heard, key=lambda number: (tops[number][1], number))

    def components_are_created_by_name(self) -> None:
        for which, factory in enumerate(self.factories):
            tops = {name: self.top("component", which, name) for name in NAMES}
            self.factory_has(factory, tops)
        self.factory_has(DynamicFactory(Tool), {name: self.top("open", name) for name in NAMES})

    def factory_has(self, factory: DynamicFactory[Any], tops: dict[str, Any]) -> None:
        classes = {name: cls for name, cls in tops.items() if isinstance(cls, type)}
        aliases = {name: target for name, target in tops.items() if isinstance(target, str)}
        assert {name: type(factory.create(name)) for name in factory.names()} == classes
        assert factory.aliases() == aliases
        for alias, target in aliases.items():
            if target in classes:
                assert type(factory.create(alias)) is classes[target]
            else:
                with pytest.raises(FactoryError):
                    factory.create(alias)

    def sections_are_in_the_schema(self) -> None:
        properties = json_schema(sections=self.sections)["properties"]
        for name in SECTIONS:
            model = self.top("section", name)
            assert (name in properties) is (model is not None)
            assert model is None or model.__name__ in str(properties[name])


def using(registries: str) -> Any:
    """Return a test of programs that use these: the fewer they are, the more involved."""

    class Program(Registrations):
        used = frozenset(registries.split())

    Program.TestCase.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)
    return Program.TestCase


TestServices = using("services")
TestEvents = using("events")
TestComponents = using("components factories")
TestAllTogether = using("services events components factories sections")
