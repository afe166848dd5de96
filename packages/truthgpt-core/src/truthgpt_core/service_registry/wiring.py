"""Who needs whom: reading constructor parameters, matching them, judging and drawing the graph.

Nothing here builds a service. A `Wiring` is made from the registrations of one moment and does
not change; every change of the registry makes a new one.
"""

from __future__ import annotations

import functools
import graphlib
import inspect
import re
import types
import typing
from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from truthgpt_core.errors import did_you_mean
from truthgpt_core.service_registry.errors import (
    AmbiguousDependencyError,
    InvalidServiceError,
    MissingDependencyError,
    ServiceCycleError,
    ServiceError,
)
from truthgpt_core.transaction import current_owner

Lifetime = Literal["singleton", "transient"]

# `str` and `Any` do not tell one service from another, nor does a missing annotation.
_GENERAL_MODULES = ("builtins", "typing", "collections.abc", "inspect")

# All but letters and digits, and what joins them: `model_service`, not `__init__`.
_ESCAPED = re.compile("[^A-Za-z0-9_-]|(?<![A-Za-z0-9])[_-]|[_-](?![A-Za-z0-9])")


@dataclass(frozen=True)
class ServiceInfo:
    """A service and what it needs, known without building it.

    Attributes:
        name: the name that it is registered under.
        lifetime: "singleton" or "transient".
        needs: the services that it gets; where several match one parameter, all of them.
        missing: the parameters without a default that no service matches.
        plugin: the plugin that registered it; None if none did.
    """

    name: str
    lifetime: Lifetime
    needs: tuple[str, ...]
    missing: tuple[str, ...]
    plugin: str | None = None


@dataclass(frozen=True, eq=False)
class Registration:
    """What a name stands for."""

    name: str
    source: Any  # the class, function or instance
    singleton: bool
    signature: inspect.Signature | None  # of `source`; None if it is the service
    plugin: str | None = field(default_factory=current_owner)

    @property
    def lifetime(self) -> Lifetime:
        """How long an instance is kept."""
        return "singleton" if self.singleton else "transient"

    @property
    def quoted(self) -> str:
        """The name as messages write it, with the plugin that registered it."""
        return f'"{self.name}"' + (f' of plugin "{self.plugin}"' if self.plugin else "")

    def same_as(self, other: Registration | None) -> bool:
        """Whether `other` stands for the same object, with the same lifetime."""
        return bool(other and self.source is other.source and self.singleton == other.singleton)


class Need(NamedTuple):
    """What one parameter gets."""

    parameter: str
    services: tuple[str, ...]  # those that match it: exactly one in a valid graph
    by_keyword: bool  # whether it has to be passed by keyword


class Wiring:
    """The graph of the services that are registered."""

    def __init__(self, registrations: Mapping[str, Registration]) -> None:
        self.registrations = registrations
        self._valid = False

    @cached_property
    def needs(self) -> Mapping[str, tuple[Need, ...]]:
        """What the parameters of each service get, except those that keep their default."""
        by_class: defaultdict[type | None, list[str]] = defaultdict(list)
        for name, one in sorted(self.registrations.items()):
            by_class[self._class_of(one)].append(name)
        by_class[None] = []
        return {name: self._match(one, by_class) for name, one in self.registrations.items()}

    def dependents(self, names: Set[str]) -> set[str]:
        """Return `names` and all that need one of them, directly or not."""
        found = set(names)
        needed = {
            name: {service for need in needs for service in need.services}
            for name, needs in self.needs.items()
        }
        while new := {name for name in needed.keys() - found if needed[name] & found}:
            found |= new
        return found

    def judge(self) -> None:
        """Raise an error if not every service can be built; see `ServiceRegistry.validate`."""
        if self._valid:
            return
        ordered = sorted(self.needs.items())
        for name, needs in ordered:
            for need in needs:
                if len(need.services) != 1:
                    raise self._unmet(self.registrations[name], need)
        graph = {name: [need.services[0] for need in needs] for name, needs in ordered}
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            cycle: list[str] = error.args[1][:0:-1]  # it lists what is needed first
            start = cycle.index(min(cycle))
            raise self.cycle_error([*cycle[start:], *cycle[: start + 1]]) from None
        self._valid = True

    def cycle_error(self, path: list[str]) -> ServiceCycleError:
        """Return the error for services that need each other in a cycle."""
        return ServiceCycleError(path, {name: self.registrations[name].plugin for name in path})

    def describe(self) -> tuple[ServiceInfo, ...]:
        """Return what every service needs, by name."""
        return tuple(
            ServiceInfo(
                name,
                one.lifetime,
                tuple(sorted({service for need in self.needs[name] for service in need.services})),
                tuple(need.parameter for need in self.needs[name] if not need.services),
                one.plugin,
            )
            for name, one in sorted(self.registrations.items())
        )

    def mermaid(self) -> str:
        """Return a Mermaid flowchart, the same text for the same graph."""
        services = self.describe()
        nodes = {one.name: f"n{number}" for number, one in enumerate(services)}
        lines = ["flowchart TD"]
        for one in services:
            left, right = ("[", "]") if one.lifetime == "singleton" else ("([", "])")
            lines.append(f'    {nodes[one.name]}{left}"{_escape(one.name)}"{right}')
        for one in services:
            lines += [f"    {nodes[one.name]} --> {nodes[needed]}" for needed in one.needs]
        return "\n".join(lines) + "\n"

    @cached_property
    def _local_classes(self) -> Mapping[str, Any]:
        """The registered classes that are defined in functions, where no annotation finds them."""
        classes = [one.source for one in self.registrations.values() if inspect.isclass(one.source)]
        return {one.__name__: one for one in classes if "<locals>" in one.__qualname__}

    def _match(
        self, one: Registration, by_class: Mapping[type | None, list[str]]
    ) -> tuple[Need, ...]:
        needs = []
        by_keyword = False
        for name, parameter in one.signature.parameters.items() if one.signature else ():
            if name in self.registrations:
                services = [name]
            else:
                found = by_class.get(self._class_in(one.source, parameter.annotation), [])
                # A service that wraps another of its own class does not mean itself.
                services = [each for each in found if each != one.name]
            by_keyword = by_keyword or parameter.kind is parameter.KEYWORD_ONLY
            if services or parameter.default is parameter.empty:
                needs.append(Need(name, tuple(services), by_keyword))
            else:
                by_keyword = True  # it keeps its default, so the next ones have no position
        return tuple(needs)

    def _class_of(self, one: Registration) -> type | None:
        """Return the class that annotations find a service by."""
        if one.signature is None:
            return _service_class(type(one.source))
        if isinstance(one.source, type):
            return _service_class(one.source)
        return self._class_in(one.source, one.signature.return_annotation)

    def _class_in(self, source: object, annotation: object) -> type | None:
        """Return the class that an annotation of `source` names; None if it names none."""
        names = {**self._local_classes, **getattr(_function(source), "__globals__", {})}
        holder = types.SimpleNamespace(__annotations__={"it": annotation})
        try:
            return _service_class(typing.get_type_hints(holder, names)["it"])
        except Exception:  # noqa: BLE001 - an annotation is any expression, and may raise anything
            return None

    def _unmet(self, one: Registration, need: Need) -> ServiceError:
        where = f'(parameter "{need.parameter}" of {_label(one.source)})'
        if not need.services:
            return MissingDependencyError(
                f'{one.quoted} needs "{need.parameter}" {where}, which is not registered',
                hint=did_you_mean(need.parameter, self.registrations),
            )
        listed = ", ".join(self.registrations[name].quoted for name in need.services)
        return AmbiguousDependencyError(
            f"{one.quoted} needs one of {listed} {where}, and nothing says which",
            hint="Name the parameter like the service that is meant.",
        )


def read_registration(name: str, service: Any, singleton: bool) -> Registration:
    """Return the registration of `service` under `name`.

    Raises:
        InvalidServiceError: if it can never be built, or the name is invalid.
    """
    check_name(name)
    if service is None:
        raise InvalidServiceError(f'Service "{name}" cannot be None')
    # An object with `__call__` is an instance: a neural network is a service.
    if isinstance(service, type | functools.partial) or inspect.isroutine(service):
        return Registration(name, service, singleton, _read_signature(name, service))
    if not singleton:
        raise InvalidServiceError(
            f'Service "{name}" cannot be transient: {service!r} is neither a class nor a function',
            hint="Register a class or a function, or leave out singleton=False.",
        )
    return Registration(name, service, singleton, None)


def check_name(name: object) -> None:
    """Raise `InvalidServiceError` if `name` cannot be the name of a service."""
    if not isinstance(name, str) or not name:
        raise InvalidServiceError(f"The name of a service must be a nonempty string, not {name!r}")


def _read_signature(name: str, source: Any) -> inspect.Signature:
    signature = inspect.Signature()
    reason = ""
    if inspect.iscoroutinefunction(source) or inspect.isasyncgenfunction(source):
        reason = "it is an async function"
    elif inspect.isgeneratorfunction(source):
        reason = "it is a generator function"
    # A class written in C, such as `dict`, gets no arguments.
    elif not isinstance(source, type) or inspect.isfunction(_function(source)):
        try:
            signature = inspect.signature(source)
        except (ValueError, TypeError):
            reason = "it has no signature to read"
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            reason = f'its parameter "{parameter}" is {parameter.kind.description}'
    if reason:
        raise InvalidServiceError(
            f'Service "{name}" cannot be made by {_label(source)}: {reason}',
            hint="Register a function that takes what it needs by name and returns the service.",
        )
    return signature


def _function(source: Any) -> Any:
    """Return the function whose parameters are read; the class if that is written in C."""
    while isinstance(source, functools.partial):
        source = source.func
    if isinstance(source, type):
        constructors = [getattr(source, name) for name in ("__init__", "__new__")]
        return next((one for one in constructors if inspect.isfunction(one)), source)
    return inspect.unwrap(getattr(source, "__func__", source))


def _service_class(hint: Any) -> type | None:
    """Return the class that a type hint names, if that tells one service from another."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(hint) if part is not types.NoneType]
        hint = parts[0] if len(parts) == 1 else None
    is_class = isinstance(hint, type) and hint.__module__ not in _GENERAL_MODULES
    return hint if is_class else None


def _label(source: Any) -> str:
    """Return what messages call a class or a function: `Engine.__init__` or `make_engine`."""
    suffix = ".__init__" if isinstance(source, type) else ""
    name = getattr(source if suffix else _function(source), "__qualname__", repr(source))
    return f"{name}".rpartition("<locals>.")[2] + suffix


def _escape(name: str) -> str:
    """Return `name` for a quoted Mermaid label, in ASCII.

    Quotes do not protect everything: `direction TB` is taken for a command, `fa:fa-car` for an
    icon, and some versions read Markdown.
    """
    return _ESCAPED.sub(lambda char: f"#{ord(char[0])};", name)
