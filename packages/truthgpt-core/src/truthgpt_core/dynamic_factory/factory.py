"""`DynamicFactory`: components by name, and the open ones, which every factory has that fits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType, ModuleType
from typing import Any, Generic, TypeVar, cast
from weakref import WeakSet

from truthgpt_core.dynamic_factory.checks import argument_problems, is_protocol, misfit
from truthgpt_core.dynamic_factory.errors import (
    ComponentArgumentsError,
    ComponentLoadError,
    ComponentNameError,
    ComponentTypeError,
    DuplicateComponentError,
    FactoryError,
    UnknownComponentError,
)
from truthgpt_core.dynamic_factory.names import (
    Alias,
    Component,
    ComponentNames,
    Removed,
    check_name,
    lock,
    name_for,
    origin_of,
    refuse_other_than_string,
)
from truthgpt_core.errors import in_one_line, meant_or_known
from truthgpt_core.transaction import Transaction, record_undo

T = TypeVar("T")

_factories: WeakSet[DynamicFactory[Any]] = WeakSet()
_open: list[tuple[str, Component]] = []


class DynamicFactory(Generic[T]):
    """Creates components by name.

    Args:
        base_class: what every component must be a subclass of: a plain class, an
            abstract one or a `runtime_checkable` protocol. None takes any callable,
            and no open components.
        name: what error messages call it, and what `publish_factory` publishes it as.
        takes_open: whether it has the open components that fit.
        distribution_of: returns the distribution that has a component which is not
            registered, or None if that is not known; for error messages.

    Raises:
        ComponentTypeError: the base class is none, or a protocol not runtime-checkable.
    """

    def __init__(
        self,
        base_class: type[T] | None = None,
        name: str | None = None,
        *,
        takes_open: bool = True,
        distribution_of: Callable[[str], str | None] = lambda name: None,
    ) -> None:
        if base_class is not None:
            _check_base_class(base_class)
        self._base_class = base_class
        self._name = name
        self.distribution_of = distribution_of
        self._names = ComponentNames(self._label)
        if not takes_open:
            return
        with lock:
            _factories.add(self)
            for component_name, component in _open:
                if self._takes(component.target):
                    self._names.cover(component_name, component)

    @property
    def base_class(self) -> type[T] | None:
        """What every component is a subclass of; None if it takes any callable."""
        return self._base_class

    @property
    def name(self) -> str | None:
        """The factory's name, if it has one."""
        return self._name

    def register(self, name: str, cls: Callable[..., T], *, replace: bool = False) -> None:
        """Register `cls` under `name`. Again changes nothing: it is there until both are undone.

        A class may be registered under the name of a component that waits to be
        imported, and takes its place: that is what importing its module may do.

        Args:
            name: letters, digits, `_` and `-`.
            cls: a concrete class that satisfies the base class, or, without a base
                class, any callable.
            replace: take the place of what has the name.

        Raises:
            ComponentNameError: the name is not suitable.
            ComponentTypeError: `cls` does not satisfy the base class.
            DuplicateComponentError, UnknownComponentError: the name is taken; is not to `replace`.
        """
        check_name(name)
        self._check_type(name, cls)
        component = Component(origin_of(cls), target=cls)
        with lock:
            self._names.push(name, component, replace=replace)

    def register_lazy(
        self,
        name: str,
        loader: Callable[[], object],
        *,
        describe: str,
        target: str | None = None,
        replace: bool = False,
    ) -> None:
        """Register what `loader` returns, to be called when it is first needed.

        Args:
            name: as for `register`.
            loader: returns the component; `EntryPoint.load`, for one. It may be called
                more than once, if it fails or threads race.
            describe: where the component comes from, for error messages.
            target: the component as `"module:attribute"`. If it is registered already,
                because something imported its module, that is no duplicate.
            replace: as for `register`.

        Raises:
            ComponentNameError: the name is not suitable.
            DuplicateComponentError: something else has the name.
        """
        check_name(name)
        component = Component(describe, loader=loader)
        with lock:
            present = self._names.get(name)
            if not replace and isinstance(present, Component):
                if target is None or not present.is_at(target):
                    self._names.check_free(name, component)
                component = Component(present.origin, present.target, loader)
            self._names.push(name, component, replace=replace)

    def register_alias(self, alias: str, name: str, *, replace: bool = False) -> None:
        """Let `alias` stand for `name`. Again changes nothing: it does until both are undone.

        Args:
            alias: as the name for `register`.
            name: a registered component, or an alias of one.
            replace: take the place of what has the name `alias`.

        Raises:
            ComponentNameError: the alias is not suitable.
            UnknownComponentError: no component has the name.
            DuplicateComponentError: something else has the name `alias`.
        """
        check_name(alias)
        with lock:
            found, _ = self._find(name)
            layer = Alias(found)
            # An alias of itself would hide the component it is for.
            self._names.push(alias, layer, replace=replace and alias != found)

    def auto_register_from_module(self, module: ModuleType) -> tuple[str, ...]:
        """Register the components that `module` defines: all of them or, on an error, none.

        Those are its concrete classes that satisfy the base class and whose names do not
        begin with an underscore; what it only imports is left out, and so is what is
        registered already, under whatever name. A component's name is the string the
        class itself has as `component_name` or `name`, or else its own in snake_case.

        Args:
            module: an imported module.

        Returns:
            The names that were registered.

        Raises:
            ComponentTypeError: the factory has no base class to tell components by.
            ComponentNameError: a name is not suitable.
            DuplicateComponentError: something else has a name.
        """
        if self._base_class is None:
            raise ComponentTypeError(
                f"{self._label} has no base class, so any callable in {module.__name__} would do",
                hint="Register its components one by one.",
            )
        registered = []
        with lock, Transaction():
            for attribute, cls in list(vars(module).items()):
                if attribute.startswith("_") or not self._is_defined_in(module, cls):
                    continue
                if known := self._names_of(cls):
                    for name in known:  # so that it stays when who registered it goes
                        self.register(name, cls)
                    continue
                name = name_for(cls)
                self.register(name, cls)
                registered.append(name)
        return tuple(registered)

    def unregister(self, name: str) -> None:
        """Take a component or an alias out. An alias of it stays, for what will have its name.

        Args:
            name: a component or an alias.

        Raises:
            UnknownComponentError: nothing has the name.
        """
        refuse_other_than_string(name)
        with lock:
            if self._names.get(name) is None:
                raise self._unknown(name)
            self._names.push(name, Removed(), replace=True)

    def names(self) -> tuple[str, ...]:
        """Return the names of the components, sorted, without aliases."""
        with lock:
            return tuple(
                name for name, layer in self._names.items() if isinstance(layer, Component)
            )

    def aliases(self) -> Mapping[str, str]:
        """Return what each alias stands for."""
        with lock:
            found = self._names.items()
        return MappingProxyType(
            {name: layer.name for name, layer in found if isinstance(layer, Alias)}
        )

    def origin(self, name: str) -> str:
        """Return where a component comes from, without importing it.

        Args:
            name: a component or an alias.

        Raises:
            UnknownComponentError: no component has the name.
        """
        return self._find(name)[1].origin

    def get_class(self, name: str) -> type[T]:
        """Return a component, imported if it was not; without a base class, any callable.

        Args:
            name: a component or an alias.

        Raises:
            UnknownComponentError: no component has the name.
            ComponentNameError: the name is the path of something to import.
            ComponentLoadError: its loader failed.
            ComponentTypeError: its loader returned what does not satisfy the base class.
        """
        while True:
            found, component = self._find(name)
            if component.target is not None:
                return cast("type[T]", component.target)
            self._load(found, component)

    def create(self, name: str, /, *args: object, **kwargs: object) -> T:
        """Create a component.

        Args:
            name: a component or an alias.
            *args: what its constructor takes.
            **kwargs: what its constructor takes.

        Raises:
            ComponentArgumentsError: the arguments do not fit; the error lists all that
                is wrong, and the constructor has not run.
            FactoryError: as for `get_class`.
        """
        component = self.get_class(name)
        problems = argument_problems(component, args, kwargs)
        if problems:
            raise ComponentArgumentsError(
                f'"{name}" of {self._label} cannot be created: {"; ".join(problems)}',
                problems=problems,
                hint=f"It takes {inspect.signature(component)}.",
            )
        return component(*args, **kwargs)

    def create_from_config(
        self, config: Mapping[str, object], *args: object, **kwargs: object
    ) -> T:
        """Create what a configuration asks for.

        Args:
            config: `{"name": "adamw", "parameters": {"lr": 0.001}}`; parameters may be
                left out.
            *args: what only code can give, such as a model's parameters.
            **kwargs: likewise; what the configuration gives too is an error.

        Raises:
            ComponentArgumentsError: as for `create`.
            FactoryError: it has another form, the component refuses a value, or as for `create`.
        """
        name, parameters = config.get("name"), config.get("parameters", {})
        form = 'Write {"name": ..., "parameters": {...}}.'
        if not isinstance(name, str):
            raise FactoryError(f"A configuration for {self._label} has no name", hint=form)
        stray = [repr(key) for key in config if key not in ("name", "parameters")]
        if stray:
            raise FactoryError(
                f'Parameters stand beside the name "{name}": {", ".join(stray)}', hint=form
            )
        if not isinstance(parameters, Mapping) or not all(isinstance(k, str) for k in parameters):
            raise FactoryError(f'The parameters of "{name}" are no mapping of names', hint=form)
        twice = [repr(key) for key in parameters if key in kwargs]
        if twice:
            raise FactoryError(
                f'The program sets {", ".join(twice)} of "{name}" itself',
                hint="Take it out of the configuration.",
            )
        try:
            return self.create(name, *args, **parameters, **kwargs)
        except (TypeError, ValueError) as error:
            raise FactoryError(
                f'"{name}" of {self._label} refuses its parameters: {in_one_line(error)}'
            ) from error

    def __contains__(self, name: object) -> bool:
        with lock:
            return isinstance(name, str) and self._names.get(name) is not None

    def __repr__(self) -> str:
        return f"<{self._label}: {', '.join(self.names()) or 'empty'}>"

    @property
    def _label(self) -> str:
        if self._name is not None:
            return self._name
        base = self._base_class
        return "the factory" if base is None else f"the factory of {origin_of(base)}"

    def _find(self, name: str) -> tuple[str, Component]:
        refuse_other_than_string(name)
        with lock:
            found = self._names.get(name)
            if isinstance(found, Alias):
                name, found = found.name, self._names.get(found.name)
            if isinstance(found, Component):
                return name, found
            raise self._unknown(name)

    def _unknown(self, name: str) -> FactoryError:
        if "." in name or ":" in name or "/" in name:
            return ComponentNameError(
                f'"{name}" looks like the path of something to import, and {self._label} '
                "resolves only registered names",
                hint="Otherwise a configuration file could run any code. Register it first.",
            )
        known = [known_name for known_name, _ in self._names.items()]
        have = f"It has: {', '.join(known)}." if known else "It has none."
        return UnknownComponentError(
            f'{self._label} has no component named "{name}"',
            hint=meant_or_known(name, known, have),
        )

    def _names_of(self, cls: object) -> list[str]:
        return [
            name
            for name, layer in self._names.items()
            if isinstance(layer, Component) and layer.target is cls
        ]

    def _takes(self, component: object) -> bool:
        return self._base_class is not None and misfit(component, self._base_class) is None

    def _is_defined_in(self, module: ModuleType, value: object) -> bool:
        return (
            isinstance(value, type)
            and value.__module__ == module.__name__
            and value is not self._base_class
            and self._takes(value)
        )

    def _check_type(self, name: str, component: object, origin: str | None = None) -> None:
        reason = misfit(component, self._base_class)
        if reason is None:
            return
        wanted = "any callable" if self._base_class is None else origin_of(self._base_class)
        found = f"{origin_of(component)} ({origin})" if origin else origin_of(component)
        raise ComponentTypeError(
            f'{self._label} takes {wanted}, and "{name}", {found}, does not fit: {reason}'
        )

    def _load(self, name: str, component: Component) -> None:
        assert component.loader is not None
        try:
            loaded = component.loader()
        except (Exception, SystemExit) as error:
            raise ComponentLoadError(
                f'"{name}" of {self._label}, {component.origin}, could not be loaded: '
                f"{type(error).__name__}: {error}"
            ) from error
        self._check_type(name, loaded, component.origin)
        with lock:
            if component.target is None:
                component.target = cast("Callable[..., Any]", loaded)


def register_open(name: str, cls: Callable[..., Any], *, replace: bool) -> None:
    """Register a class with every factory whose base class it satisfies.

    Args:
        name: as for `DynamicFactory.register`.
        cls: the class.
        replace: take the place of what has the name.

    Raises:
        FactoryError: as `DynamicFactory.register` raises it; then no factory has the class.
    """
    if not isinstance(cls, type):
        raise ComponentTypeError(
            f'"{name}" is {origin_of(cls)}, which is not a class and so satisfies no base class',
            hint="Say which factory it is for: register_component(name, factory=...).",
        )
    if reason := misfit(cls, None):
        raise ComponentTypeError(f'{origin_of(cls)} cannot be the component "{name}": {reason}')
    component = Component(origin_of(cls), target=cls)
    with lock:
        present = next((other for known, other in reversed(_open) if known == name), None)
        if present is not None and present.target is not cls and not replace:
            raise DuplicateComponentError(
                f'An open component "{name}" exists already, {present.origin}, '
                f"so it cannot be {component.origin}",
                hint="Bind one to its factory: register_component(name, factory=...).",
            )
        # Every factory is asked before one is changed.
        takers = [factory for factory in _factories if factory._takes(cls)]
        for factory in takers if not replace else ():
            factory._names.check_free(name, component)
        undoable = record_undo(partial(_withdraw_open, name, component))
        if not undoable:  # one that stays for good takes the place of itself
            _open[:] = [(k, other) for k, other in _open if k != name or other.target is not cls]
        _open.append((name, component))
        for factory in takers:
            factory._names.cover(name, component, for_good=not undoable)


def _withdraw_open(name: str, component: Component) -> None:
    with lock:
        _open[:] = [(k, other) for k, other in _open if other is not component]
        # Factories made since have it too.
        for factory in _factories:
            factory._names.withdraw(name, component)


def _check_base_class(base_class: object) -> None:
    if not isinstance(base_class, type):
        raise ComponentTypeError(f"{base_class!r} is not a class, so it cannot be a base class")
    if is_protocol(base_class) and not getattr(base_class, "_is_runtime_protocol", False):
        raise ComponentTypeError(
            f"The protocol {origin_of(base_class)} cannot be checked at run time",
            hint="Decorate it with typing.runtime_checkable.",
        )
