"""What a factory checks: that a component fits its base class, and arguments a signature.

Both are checked before anything of the component runs, so that a mistake in a
configuration is reported whole, and by name.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import Parameter
from types import NoneType, SimpleNamespace, UnionType
from typing import (
    Any,
    Literal,
    Protocol,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

from truthgpt_core.errors import did_you_mean


@runtime_checkable
class _EmptyProtocol(Protocol):
    """What this one has, every protocol has: it is not a member that the protocol asks for."""


_MACHINERY = {
    *vars(_EmptyProtocol),
    "__annotate__",
    "__annotate_func__",
    "__annotations__",
    "__annotations_cache__",
    "__orig_bases__",
    "__slots__",
    "__type_params__",
}

# The abstract numbers take in NumPy's scalars, which are no subclasses of int and float.
_ACCEPTED: Mapping[object, type] = {
    int: numbers.Integral,
    float: numbers.Real,
    str: str,
    bool: bool,
    NoneType: NoneType,
}


def is_protocol(kind: type) -> bool:
    """Return whether `kind` is itself a protocol, and no class that implements one."""
    return bool(vars(kind).get("_is_protocol", False))


def misfit(component: object, base_class: type | None) -> str | None:
    """Return why `component` cannot be created for `base_class`, or None if it can.

    Args:
        component: a class or another callable.
        base_class: a class, an abstract one or a protocol; None takes any callable.
    """
    if not callable(component):
        return "it cannot be called"
    if isinstance(component, type):
        if is_protocol(component):
            return "it is a protocol, which has no instances"
        if inspect.isabstract(component):
            unimplemented = sorted(getattr(component, "__abstractmethods__", ()))
            return f"it is abstract: {', '.join(unimplemented)} not implemented"
    if base_class is None:
        return None
    if not isinstance(component, type):
        return "it is not a class"
    if base_class in component.__mro__:
        return None
    missing = _missing_members(component, base_class) if is_protocol(base_class) else []
    try:
        fits = issubclass(component, base_class)
    except TypeError:
        # Protocols with members that are no methods refuse the question.
        fits = not missing
    if fits:
        return None
    return f"it lacks {', '.join(missing)}" if missing else "it is not a subclass of it"


def argument_problems(
    component: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]
) -> list[str]:
    """Return everything wrong with calling `component` so; an empty list if nothing is.

    Types are checked where the annotation is int, float, str, bool, None, a Literal or
    a union of those; everything else is left to the component.

    Args:
        component: a class or another callable.
        args: the positional arguments.
        kwargs: the keyword arguments.
    """
    try:
        signature = inspect.signature(component)
    except (TypeError, ValueError):  # some callables written in C have none
        return []
    parameters = signature.parameters
    positional = [p for p in parameters.values() if p.kind in _POSITIONAL]
    variadic = any(p.kind is Parameter.VAR_POSITIONAL for p in parameters.values())
    given: dict[str, object] = dict(zip((p.name for p in positional), args, strict=False))
    problems = []
    if len(args) > len(positional) and not variadic:
        problems.append(f"{len(args)} positional arguments given, {len(positional)} taken at most")
    for name, value in kwargs.items():
        problem = _keyword_problem(name, parameters, given)
        if problem:
            problems.append(problem)
        elif name in parameters and parameters[name].kind in _KEYWORD:
            given[name] = value
    problems += [
        f'missing argument "{p.name}"'
        for p in parameters.values()
        if p.name not in given and p.default is Parameter.empty and p.kind not in _VARIADIC
    ]
    namespace = _namespace(component)
    for name, value in given.items():
        if parameters[name].kind not in _VARIADIC:
            problems += _type_problem(name, value, parameters[name].annotation, namespace)
    return problems


_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_KEYWORD = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def _keyword_problem(
    name: str, parameters: Mapping[str, Parameter], given: Mapping[str, object]
) -> str | None:
    parameter = parameters.get(name)
    if parameter is not None and parameter.kind in _KEYWORD:
        return f'"{name}" given twice, by position and by name' if name in given else None
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values()):
        return None
    if parameter is not None and parameter.kind is Parameter.POSITIONAL_ONLY:
        return f'"{name}" must be given by position'
    suggestion = did_you_mean(name, [p.name for p in parameters.values() if p.kind in _KEYWORD])
    return f'unknown argument "{name}"' + (f" ({suggestion})" if suggestion else "")


def _type_problem(
    name: str, value: object, annotation: object, namespace: Mapping[str, Any]
) -> Iterator[str]:
    # One by one: a name that only a type checker can import spoils no other annotation.
    holder = SimpleNamespace(__annotations__={name: annotation})
    try:
        kind = get_type_hints(holder, dict(namespace))[name]
    except Exception:  # noqa: BLE001 - evaluating an annotation can raise anything
        return
    choices = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if not all(choice in _ACCEPTED or get_origin(choice) is Literal for choice in choices):
        return
    if not any(_accepts(choice, value) for choice in choices):
        wanted = " or ".join(_choice_text(choice) for choice in choices)
        yield f'"{name}" must be {wanted}, not {type(value).__name__} {value!r}'


def _accepts(choice: object, value: object) -> bool:
    if get_origin(choice) is Literal:
        # The types too: 1 == True, and it is not what the annotation allows.
        return any(type(value) is type(item) and value == item for item in get_args(choice))
    if isinstance(value, bool):
        return choice is bool
    return isinstance(value, _ACCEPTED[choice])


def _choice_text(choice: object) -> str:
    if get_origin(choice) is Literal:
        return " or ".join(repr(item) for item in get_args(choice))
    return "None" if choice is NoneType else getattr(choice, "__name__", str(choice))


def _namespace(component: Callable[..., object]) -> Mapping[str, Any]:
    """Return the globals in which the annotations of `component` were written."""
    function: Any = component
    functions = (
        (function.__init__, function.__new__) if isinstance(component, type) else (function,)
    )
    for function in functions:
        namespace = getattr(inspect.unwrap(function), "__globals__", None)
        if namespace is not None:
            return dict(namespace)
    return {}


def _missing_members(component: type, protocol: type) -> list[str]:
    # typing's own list of a protocol's members is public from Python 3.13 on.
    wanted = {name for kind in protocol.__mro__ if is_protocol(kind) for name in _declared(kind)}
    present = {name for kind in component.__mro__ for name in _declared(kind)}
    return sorted(wanted - present - _MACHINERY)


def _declared(kind: type) -> set[str]:
    return {*vars(kind), *inspect.get_annotations(kind)}
