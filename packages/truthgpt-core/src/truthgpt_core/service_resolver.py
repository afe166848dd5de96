"""Closures that make a service, compiled once per name, and the path that errors carry.

A resolver takes the container or the scope that asks and returns the service. The
variants without a loop are what keeps resolution close to calling the constructors
by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

from truthgpt_core.service_errors import InvalidServiceError

Resolver = Callable[[Any], Any]

_BUILDING = "_truthgpt_services_being_built"


class Opened(NamedTuple):
    """What a generator factory yielded, and the generator that waits to close it."""

    service: Any
    generator: Generator[Any, None, None]


def compile_call(
    name: str,
    factory: Callable[..., Any],
    positional: Sequence[Resolver],
    keyword: Mapping[str, Resolver],
) -> Resolver:
    """Return a resolver that calls `factory` with what the given resolvers return.

    Args:
        name: the service that is made, for the path in the notes of errors.
        factory: what makes it.
        positional: resolvers of the arguments passed by position.
        keyword: resolvers of the arguments passed by keyword.
    """
    if not keyword and not positional:

        def call(at: Any) -> Any:
            try:
                return factory()
            except Exception as error:
                _passes_through(name, error)
                raise

    elif not keyword and len(positional) == 1:
        (only,) = positional

        def call(at: Any) -> Any:
            try:
                return factory(only(at))
            except Exception as error:
                _passes_through(name, error)
                raise

    elif not keyword and len(positional) == 2:
        first, second = positional

        def call(at: Any) -> Any:
            try:
                return factory(first(at), second(at))
            except Exception as error:
                _passes_through(name, error)
                raise

    else:
        by_position = tuple(positional)
        by_keyword = tuple(keyword.items())

        def call(at: Any) -> Any:
            try:
                return factory(
                    *[resolve(at) for resolve in by_position],
                    **{key: resolve(at) for key, resolve in by_keyword},
                )
            except Exception as error:
                _passes_through(name, error)
                raise

    return call


def constant(service: Any) -> Resolver:
    """Return a resolver that returns `service`."""
    return lambda _at: service


def opening(name: str, factory: Callable[..., Generator[Any, None, None]]) -> Callable[..., Opened]:
    """Return a function that starts the generator of `factory` and runs it up to its yield."""

    def opened(*args: Any, **kwargs: Any) -> Opened:
        generator = factory(*args, **kwargs)
        for service in generator:
            return Opened(service, generator)
        raise InvalidServiceError(f'The generator function of service "{name}" yielded nothing')

    return opened


def finish(name: str, generator: Generator[Any, None, None]) -> None:
    """Run what follows the yield of a generator factory.

    Raises:
        InvalidServiceError: if it yields a second time.
    """
    for _ in generator:
        generator.close()
        raise InvalidServiceError(f'The generator function of service "{name}" yielded twice')


def add_building_path(error: Exception) -> None:
    """Add to `error` the note which services were being built when it was raised."""
    if (names := error.__dict__.pop(_BUILDING, None)) is None:
        return
    note = f"While building services: {' -> '.join(reversed(names))}"
    # A mock raises the same exception every time; it needs the note once.
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


def _passes_through(name: str, error: Exception) -> None:
    error.__dict__.setdefault(_BUILDING, []).append(name)
