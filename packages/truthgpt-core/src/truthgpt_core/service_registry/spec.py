"""What is registered under one name: how to make the service and what that needs.

Signatures are read when a service is registered, so that a service that can never
be made is refused there. Annotations are resolved later, before the first use: a
class may be registered before the classes that its annotations name exist.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, Union, get_args, get_origin

from truthgpt_core.service_registry.errors import InvalidServiceError
from truthgpt_core.transaction import current_owner

Lifetime = Literal["singleton", "scoped", "transient"]
LIFETIMES: tuple[Lifetime, ...] = get_args(Lifetime)

T_co = TypeVar("T_co", covariant=True)


class Provider(Protocol[T_co]):
    """Gets a service later: annotate a parameter `Provider[T]` and call it when `T` is needed.

    Every call gets the service as `get` would, from the scope or the container that
    the provider was made in. It is how two services can need each other, as long as
    neither calls its provider while it is being constructed.
    """

    def __call__(self) -> T_co:
        """Return the service."""
        ...


@dataclass(frozen=True)
class Parameter:
    """One parameter of a factory: `annotation` is as it was written, perhaps a string."""

    name: str
    annotation: Any
    has_default: bool
    keyword_only: bool


@dataclass(frozen=True)
class Wanted:
    """What the annotation of a parameter asks for, or that of a result offers.

    Attributes:
        kind: the class, or None where the annotation names none that services are told by.
        lazy: whether it is a `Provider`.
        resolved: False if the annotation could not be evaluated (yet).
    """

    kind: type | None = None
    lazy: bool = False
    resolved: bool = True


@dataclass(frozen=True, eq=False)
class ServiceSpec:
    """One registration.

    Attributes:
        name: the key.
        source: the class, function or instance that was registered.
        making: whether `source` is called, is called and iterated, or is the service.
        lifetime: how long what was made is kept.
        parameters: the parameters of `source`, none for an instance.
        stands_for: what this overrides. It provides the class that `stands_for`
            provides, so that a fake need not be a subclass to be found by annotation.
        owner: the plugin that registered it; None if none did.
    """

    name: str
    source: Any
    making: Literal["call", "generator", "instance"]
    lifetime: Lifetime
    parameters: tuple[Parameter, ...] = ()
    stands_for: ServiceSpec | None = field(default=None, repr=False)
    owner: str | None = field(default_factory=current_owner)

    @property
    def named(self) -> str:
        """The name as messages write it, with the plugin that the registration is of."""
        return f'"{self.name}"' if self.owner is None else f'"{self.name}" of plugin "{self.owner}"'

    @property
    def label(self) -> str:
        """Whose parameters these are, as an error says it: `A.__init__` or `make_a`."""
        suffix = ".__init__" if isinstance(self.source, type) else ""
        qualname: str = getattr(_unwrapped(self.source), "__qualname__", repr(self.source))
        return qualname.rpartition("<locals>.")[2] + suffix

    @property
    def original(self) -> ServiceSpec:
        """What was registered, under however many overrides."""
        return self if self.stands_for is None else self.stands_for.original

    def provides(self, local_classes: Mapping[tuple[str, str], type]) -> Wanted:
        """Return the class that annotations find this service by."""
        if self.stands_for is not None:
            return self.original.provides(local_classes)
        if isinstance(self.source, type):
            return Wanted(_telling(self.source))
        if self.making == "instance":
            return Wanted(_telling(type(self.source)))
        function = _unwrapped(self.source)
        hint = self._resolve(getattr(function, "__annotations__", {}).get("return"), local_classes)
        if hint is _UNRESOLVED:
            return Wanted(resolved=False)
        if self.making == "generator":
            is_iterator = get_origin(hint) in (Iterator, Iterable, Generator)
            yielded = get_args(hint)[:1] if is_iterator else ()
            hint = yielded[0] if yielded else None
        return Wanted(_telling(_without_none(hint)))

    def wanted(self, parameter: Parameter, local_classes: Mapping[tuple[str, str], type]) -> Wanted:
        """Return what the annotation of `parameter` asks for."""
        if parameter.annotation is inspect.Parameter.empty:
            return Wanted()
        hint = self._resolve(parameter.annotation, local_classes)
        if hint is _UNRESOLVED:
            return Wanted(resolved=False)
        hint = _without_none(hint)
        if hint is Provider:
            return Wanted(lazy=True)
        if get_origin(hint) is Provider:
            return Wanted(_telling(_without_none(get_args(hint)[0])), lazy=True)
        return Wanted(_telling(hint))

    def _resolve(self, annotation: Any, local_classes: Mapping[tuple[str, str], type]) -> Any:
        owner = _unwrapped(self.source)
        code = _python_function(owner)
        globals_ = code.__globals__ if code else vars(inspect.getmodule(owner) or types)
        holder = types.SimpleNamespace(__annotations__={"it": annotation})
        try:
            return typing.get_type_hints(holder, globals_, _Locals(owner, code, local_classes))[
                "it"
            ]
        except Exception:  # noqa: BLE001 - an annotation is any expression, and it may raise anything
            return _UNRESOLVED


def read_spec(
    name: str,
    service: Any,
    lifetime: Lifetime,
    *,
    stands_for: ServiceSpec | None = None,
) -> ServiceSpec:
    """Return the registration of `service` under `name`.

    Args:
        name: the key, a string that is not empty.
        service: a class or a function, called to make the service; or an instance,
            which is anything else, also an object that can be called.
        lifetime: how long what was made is kept.
        stands_for: the registration that this one overrides.

    Raises:
        InvalidServiceError: if `name`, `lifetime` or `service` will not do.
    """
    check_name(name)
    if lifetime not in LIFETIMES:
        raise InvalidServiceError(
            f'Service "{name}" cannot have the lifetime {lifetime!r}',
            hint=f"Lifetimes are {', '.join(LIFETIMES)}.",
        )
    if service is None:
        raise InvalidServiceError(f'Service "{name}" cannot be None')
    if not is_factory(service):
        if lifetime != "singleton" and stands_for is None:
            raise InvalidServiceError(
                f'Service "{name}" cannot be {lifetime}: {service!r} is neither a class nor '
                "a function, so it cannot be made anew",
                hint="Register a class or a function, or make it a singleton.",
            )
        return ServiceSpec(name, service, "instance", lifetime, stands_for=stands_for)
    if inspect.iscoroutinefunction(service) or inspect.isasyncgenfunction(service):
        raise InvalidServiceError(
            f'Service "{name}" cannot be made by the async function {_called(service)}',
            hint="Register a plain function; let it return an object with async methods.",
        )
    is_generator = inspect.isgeneratorfunction(service)
    if is_generator and lifetime == "transient":
        raise InvalidServiceError(
            f'Service "{name}" cannot be transient: {_called(service)} is a generator function, '
            "and nobody would run what follows its yield",
            hint="Make it scoped or singleton.",
        )
    return ServiceSpec(
        name,
        service,
        "generator" if is_generator else "call",
        lifetime,
        _read_parameters(name, service),
        stands_for,
    )


def check_name(name: object) -> None:
    """Raise `InvalidServiceError` if `name` cannot be the name of a service."""
    if not isinstance(name, str) or not name:
        raise InvalidServiceError(
            f"The name of a service must be a string that is not empty, not {name!r}"
        )


def is_factory(service: object) -> bool:
    """Whether `service` is called to make the service, rather than being the service.

    An object with `__call__` is not: a neural network or a mock is a service.
    """
    return isinstance(service, type | functools.partial) or inspect.isroutine(service)


def _read_parameters(name: str, service: Callable[..., Any]) -> tuple[Parameter, ...]:
    hint = "Register a function that takes what it needs by name and makes the service."
    try:
        signature = inspect.signature(service)
    except (ValueError, TypeError) as error:
        if _is_builtin(service):
            return ()  # `dict` says nothing of what it takes, and can do without
        raise InvalidServiceError(
            f'Service "{name}" cannot be made by {_called(service)}: it has no signature to read',
            hint=hint,
        ) from error
    parameters = [each for each in signature.parameters.values() if not _may_go(service, each)]
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise InvalidServiceError(
                f'Service "{name}" cannot be made by {_called(service)}: '
                f'its parameter "{parameter}" is {parameter.kind.description}',
                hint=hint,
            )
    return tuple(
        Parameter(
            parameter.name,
            parameter.annotation,
            parameter.default is not parameter.empty,
            parameter.kind is parameter.KEYWORD_ONLY,
        )
        for parameter in parameters
    )


def _is_builtin(service: object) -> bool:
    return isinstance(service, type) and _python_function(service) is None


def _may_go(service: object, parameter: inspect.Parameter) -> bool:
    """Whether a class written in C can do without a parameter that cannot be given by name."""
    variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    by_position = parameter.kind is parameter.POSITIONAL_ONLY
    has_default = parameter.default is not parameter.empty
    return _is_builtin(service) and (variable or (by_position and has_default))


_UNRESOLVED: Any = object()

# `Any` is a class, too: what is annotated with it would get whatever claims to make it.
_GENERAL_MODULES = ("builtins", "typing", "collections.abc")


class _Locals(dict[str, Any]):
    """The names that an annotation sees besides those of its module.

    They are what the function closes over, and registered classes from the
    functions around it: with `from __future__ import annotations` nothing else
    tells what a class inside a function is.
    """

    def __init__(
        self,
        owner: object,
        function: types.FunctionType | None,
        local_classes: Mapping[tuple[str, str], type],
    ) -> None:
        super().__init__()
        self._module: str = getattr(owner, "__module__", "")
        self._around: str = getattr(owner, "__qualname__", "")
        self._local_classes = local_classes
        if function is not None and function.__closure__ is not None:
            for name, cell in zip(function.__code__.co_freevars, function.__closure__, strict=True):
                try:
                    self[name] = cell.cell_contents
                except ValueError:  # the cell is empty: the name is assigned later
                    continue

    def __missing__(self, name: str) -> type:
        around = self._around
        while "<locals>" in around:
            around = around.rpartition(".")[0]
            if (found := self._local_classes.get((self._module, f"{around}.{name}"))) is not None:
                return found
        raise KeyError(name)


def _telling(hint: Any) -> type | None:
    """Return `hint` if it is a class that tells one service from another: `str` does not."""
    is_class = isinstance(hint, type) and get_origin(hint) is None
    return hint if is_class and hint.__module__ not in _GENERAL_MODULES else None


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        others = [part for part in get_args(hint) if part is not types.NoneType]
        if len(others) == 1:
            return others[0]
    return hint


def _unwrapped(source: Any) -> Any:
    while isinstance(source, functools.partial):
        source = source.func
    if inspect.ismethod(source):
        source = source.__func__
    return source if isinstance(source, type) else inspect.unwrap(source)


def _python_function(owner: Any) -> types.FunctionType | None:
    is_class = isinstance(owner, type)
    attributes = [getattr(owner, name) for name in ("__init__", "__new__")] if is_class else [owner]
    for candidate in attributes:
        if isinstance(candidate, types.FunctionType):
            return candidate
    return None


def _called(service: Any) -> str:
    name: str = getattr(_unwrapped(service), "__qualname__", repr(service))
    return name.rpartition("<locals>.")[2]
