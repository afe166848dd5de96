"""Functions that make a service, prepared once per name, and the path that errors carry.

A resolver takes the container or the scope that asks and returns the service. Those of
transient services are written out as code without a loop: that is what keeps resolution
close to calling the constructors by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

from truthgpt_core.service_registry.errors import InvalidServiceError

Resolver = Callable[[Any], Any]

Entry = tuple[Any, Resolver | None]
"""What `get` finds under a name: a service that is built and None, or None and its resolver."""

_BUILDING = "_truthgpt_services_being_built"


class Opened(NamedTuple):
    """What a generator factory yielded, and the generator that waits to close it."""

    service: Any
    generator: Generator[Any, None, None]


@dataclass(frozen=True, eq=False)
class Call:
    """A resolver that calls something; good for what is made once.

    Attributes:
        name: the service that is made, for the path in the notes of errors.
        factory: what is called.
        positional: resolvers of the arguments that are passed by position.
        keyword: resolvers of those that are passed by keyword.
    """

    name: str
    factory: Callable[..., Any]
    positional: Sequence[Resolver]
    keyword: Mapping[str, Resolver]

    def __call__(self, at: Any) -> Any:
        """Make the service."""
        try:
            return self.factory(
                *[resolve(at) for resolve in self.positional],
                **{key: resolve(at) for key, resolve in self.keyword.items()},
            )
        except Exception as error:
            _passes_through([self.name], error)
            raise


def written_out(call: Call) -> Resolver:
    """Return a resolver that does what `call` does, sooner; good for what is made often.

    It makes what `call` and the calls among its arguments say, one below the other. With
    one call among them, it looks like this:

        def resolve(at):
            try:
                step = 0
                made0 = function0()
                step = 1
                made1 = function1(made0)
                return made1
            except Exception as error:
                passes_through(paths[step], error)
                raise
    """
    paths: list[tuple[str, ...]] = []
    names: dict[str, Any] = {"paths": paths, "passes_through": _passes_through}
    numbers = count()
    lines: list[str] = []

    def write(call: Call, path: tuple[str, ...]) -> str:
        path = (call.name, *path)
        arguments = [argument(each, path) for each in call.positional]
        arguments += [f"{key}={argument(each, path)}" for key, each in call.keyword.items()]
        return line(call.factory, ", ".join(arguments), path)

    def argument(resolve: Resolver, path: tuple[str, ...]) -> str:
        return write(resolve, path) if isinstance(resolve, Call) else line(resolve, "at", path)

    def line(function: Callable[..., Any], arguments: str, path: tuple[str, ...]) -> str:
        if paths[-1:] != [path]:
            lines.append(f"step = {len(paths)}")
            paths.append(path)
        number = next(numbers)
        names[f"function{number}"] = function
        lines.append(f"made{number} = function{number}({arguments})")
        return f"made{number}"

    lines.append(f"return {write(call, ())}")
    source = "\n".join(
        [
            "def resolve(at):",
            "    try:",
            *(f"        {each}" for each in lines),
            "    except Exception as error:",
            "        passes_through(paths[step], error)",
            "        raise",
        ]
    )
    # Nothing in it is from outside, except keywords: names of a function's parameters.
    exec(compile(source, f"<service {call.name}>", "exec"), names)  # noqa: S102
    resolve: Resolver = names["resolve"]
    return resolve


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


def _passes_through(path: Iterable[str], error: Exception) -> None:
    error.__dict__.setdefault(_BUILDING, []).extend(path)
