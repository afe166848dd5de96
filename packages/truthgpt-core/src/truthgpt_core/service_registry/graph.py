"""Who needs whom: wiring parameters to services, judging the graph, drawing it.

The graph is plain data about registrations: it makes nothing. What it knows of a
name is forgotten, and found out again, only when a change touches that name or
something it depends on.
"""

from __future__ import annotations

import graphlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from truthgpt_core.errors import did_you_mean
from truthgpt_core.service_registry.errors import (
    AmbiguousDependencyError,
    LifetimeError,
    MissingDependencyError,
    ServiceCycleError,
    ServiceError,
)
from truthgpt_core.service_registry.spec import Lifetime, ServiceSpec

# All but letters and digits, and what joins them: `model_service`, not `__init__`.
_ESCAPED = re.compile("[^A-Za-z0-9_-]|(?<![A-Za-z0-9])[_-]|[_-](?![A-Za-z0-9])")


@dataclass(frozen=True)
class Dependency:
    """What one parameter gets.

    Attributes:
        parameter: the name of the parameter.
        candidates: the services that would do: exactly one in a graph that is valid.
        lazy: whether the parameter gets a `Provider` rather than the service.
        keyword_only: whether the parameter is passed by keyword only.
    """

    parameter: str
    candidates: tuple[str, ...]
    lazy: bool
    keyword_only: bool

    @property
    def name(self) -> str:
        """The service that the parameter gets."""
        (name,) = self.candidates
        return name


@dataclass(frozen=True)
class Reach:
    """The services with an instance of their own that making another one can get.

    Attributes:
        now: those got while it is made, through transient services too.
        later: those got when a provider is called.
    """

    now: frozenset[str]
    later: frozenset[str]


@dataclass(frozen=True)
class ServiceInfo:
    """A service and what it needs, known without making it.

    Attributes:
        name: the name that it is registered under.
        lifetime: "singleton", "scoped" or "transient".
        needs: the services that it gets when it is made; where several would do for a
            parameter, which is an error, all of them.
        later: those that it gets through a `Provider`.
        missing: its parameters for which nothing is registered.
        plugin: the plugin that registered it; None if none did.
    """

    name: str
    lifetime: Lifetime
    needs: tuple[str, ...]
    later: tuple[str, ...]
    missing: tuple[str, ...]
    plugin: str | None = None


@dataclass(frozen=True)
class _Wiring:
    dependencies: tuple[Dependency, ...]
    asked: frozenset[str | type]  # the parameter names and classes that decided it
    complete: bool  # whether every annotation could be evaluated


class ServiceGraph:
    """Registrations by name and the dependencies between them. It does no locking."""

    def __init__(self) -> None:
        self._specs: dict[str, ServiceSpec] = {}
        self._kinds: dict[str, type | None] = {}
        self._vague: set[str] = set()  # whose kind is None because it could not be evaluated
        self._providers: defaultdict[type, set[str]] = defaultdict(set)
        self._local_classes: dict[tuple[str, str], type] = {}
        self._wirings: dict[str, _Wiring] = {}
        self._asking: defaultdict[str | type, set[str]] = defaultdict(set)
        self._incomplete: set[str] = set()
        self._dependents: defaultdict[str, set[str]] = defaultdict(set)
        self._valid: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._specs

    def names(self) -> tuple[str, ...]:
        """Return all names, sorted."""
        return tuple(sorted(self._specs))

    def spec(self, name: str) -> ServiceSpec:
        """Return the registration of `name`."""
        return self._specs[name]

    def copy(self) -> ServiceGraph:
        """Return a graph that says the same, and changes by itself from then on."""
        graph = ServiceGraph()
        for attribute, value in vars(self).items():
            setattr(graph, attribute, value.copy())
        for names_by_key in (graph._providers, graph._asking, graph._dependents):
            _copy_values(names_by_key)
        return graph

    def put(self, name: str, spec: ServiceSpec | None) -> set[str]:
        """Let `name` stand for `spec`, or for nothing.

        Returns:
            The names whose making changes by that: `name`, those whose parameters now
            get something else, and all that depend on one of these.
        """
        asking = set(self._incomplete) | self._asking.get(name, set())
        if (kind := self._kinds.get(name)) is not None:
            asking |= self._asking.get(kind, set())
        self._forget_spec(name)
        if spec is not None:
            self._specs[name] = spec
            self._note_local_class(spec)
            # Before the first use, types wait: they may name classes that do not exist yet.
            if self._wirings:
                vague, self._vague = self._vague, set()
                for one in vague:
                    del self._kinds[one]
                for one in [name, *vague]:
                    if (kind := self._kind(one)) is not None:
                        asking |= self._asking.get(kind, set())
        asking.discard(name)
        changed = {one for one in asking if self._wire(one) != self._wirings[one]} | {name}
        affected = self.dependents(changed)
        for one in changed:
            self._unwire(one)
        self._valid -= affected
        return affected

    def dependents(self, names: Iterable[str]) -> set[str]:
        """Return `names` and everything that needs one of them, at once or lazily."""
        found = set(names)
        waiting = list(found)
        while waiting:
            new = self._dependents.get(waiting.pop(), set()) - found
            found |= new
            waiting += new
        return found

    def dependencies(self, name: str) -> tuple[Dependency, ...]:
        """Return what the parameters of `name` get, in their order; defaults are left out."""
        return self._wirings[name].dependencies

    def reach(self, name: str, by_hand: Iterable[str]) -> Reach:
        """Return which kept instances making `name` could get, or got by hand."""
        found: dict[bool, set[str]] = {False: set(), True: set()}
        seen: set[tuple[str, bool]] = set()
        # What it asked for by hand may not have been there.
        steps = [*self._steps(name), *((one, False) for one in by_hand if one in self._wirings)]
        while steps:
            step = steps.pop()
            if step in seen:
                continue
            seen.add(step)
            one, later = step
            if self._specs[one].lifetime == "transient":
                steps += [(needed, later or lazy) for needed, lazy in self._steps(one)]
            else:
                found[later].add(one)
        return Reach(frozenset(found[False]), frozenset(found[True] - found[False]))

    def validate(self) -> None:
        """Judge everything that was not judged since it last changed.

        Raises:
            MissingDependencyError: if a parameter gets nothing and has no default.
            AmbiguousDependencyError: if several services would do for a parameter.
            ServiceCycleError: if services need one another in a circle without a `Provider`.
            LifetimeError: if a singleton needs a scoped service.
        """
        if len(self._valid) == len(self._specs):
            return
        self.wire()
        unjudged = sorted(self._specs.keys() - self._valid)
        for name in unjudged:
            for dependency in self._wirings[name].dependencies:
                if len(dependency.candidates) != 1:
                    raise self._unmet(self._specs[name], dependency)
        self._refuse_cycles(unjudged)
        for name in unjudged:
            way = self._way_to_scoped(name) if self._specs[name].lifetime == "singleton" else ()
            if way:
                raise LifetimeError(
                    f"Singleton {self._specs[name].named} needs the scoped service "
                    f"{self._specs[way[-1]].named}, "
                    f"which it would outlive: {' -> '.join(way)}",
                    hint=f'Make "{name}" scoped as well, or "{way[-1]}" a singleton.',
                )
        self._valid.update(unjudged)

    def describe(self, name: str) -> ServiceInfo:
        """Return what is known of `name`; the graph need not be valid."""
        self.wire()
        needs: dict[bool, set[str]] = {False: set(), True: set()}
        missing = []
        for dependency in self._wirings[name].dependencies:
            needs[dependency.lazy].update(dependency.candidates)
            if not dependency.candidates:
                missing.append(dependency.parameter)
        return ServiceInfo(
            name,
            self._specs[name].lifetime,
            tuple(sorted(needs[False])),
            tuple(sorted(needs[True])),
            tuple(missing),
            self._specs[name].owner,
        )

    def mermaid(self) -> str:
        """Return the graph as a Mermaid flowchart, the same text for the same graph.

        Singletons are rectangles, scoped services round, transient ones stadiums;
        a dotted arrow is a `Provider`.
        """
        self.wire()
        ids = {name: f"n{number}" for number, name in enumerate(self.names())}
        shapes: Mapping[Lifetime, tuple[str, str]] = {
            "singleton": ("[", "]"),
            "scoped": ("(", ")"),
            "transient": ("([", "])"),
        }
        lines = ["flowchart TD"]
        for name, node in ids.items():
            opening, closing = shapes[self._specs[name].lifetime]
            lines.append(f'    {node}{opening}"{_escaped(name)}"{closing}')
        for name, node in ids.items():
            arrows = {
                (ids[needed], "-.->" if dependency.lazy else "-->")
                for dependency in self._wirings[name].dependencies
                for needed in dependency.candidates
            }
            lines += [
                f"    {node} {arrow} {needed}"
                for needed, arrow in sorted(arrows, key=lambda pair: (int(pair[0][1:]), pair[1]))
            ]
        return "\n".join(lines) + "\n"

    def _steps(self, name: str) -> list[tuple[str, bool]]:
        return [
            (needed, dependency.lazy)
            for dependency in self._wirings[name].dependencies
            for needed in dependency.candidates
        ]

    def _forget_spec(self, name: str) -> None:
        self._vague.discard(name)
        if (spec := self._specs.pop(name, None)) is None:
            return
        if (kind := self._kinds.pop(name, None)) is not None:
            self._providers[kind].discard(name)
            if not self._providers[kind]:
                del self._providers[kind]
        if (key := _local_key(spec.original.source)) is not None:
            self._local_classes.pop(key, None)
            for other in self._specs.values():
                if other.original.source is spec.original.source:
                    self._note_local_class(other)

    def _note_local_class(self, spec: ServiceSpec) -> None:
        source = spec.original.source
        if (key := _local_key(source)) is not None:
            self._local_classes[key] = source

    def _kind(self, name: str) -> type | None:
        if name not in self._kinds:
            provided = self._specs[name].provides(self._local_classes)
            self._kinds[name] = provided.kind
            if provided.kind is not None:
                self._providers[provided.kind].add(name)
            if not provided.resolved:
                self._vague.add(name)
        return self._kinds[name]

    def wire(self) -> None:
        """Find out what every parameter gets, where that is not known yet."""
        for name in self._specs.keys() - self._kinds.keys():
            self._kind(name)
        for name in self._specs.keys() - self._wirings.keys():
            wiring = self._wirings[name] = self._wire(name)
            for key in wiring.asked:
                self._asking[key].add(name)
            if not wiring.complete:
                self._incomplete.add(name)
            for dependency in wiring.dependencies:
                for needed in dependency.candidates:
                    self._dependents[needed].add(name)

    def _unwire(self, name: str) -> None:
        if (wiring := self._wirings.pop(name, None)) is None:
            return
        self._incomplete.discard(name)
        for key in wiring.asked:
            self._asking[key].discard(name)
            if not self._asking[key]:
                del self._asking[key]
        for dependency in wiring.dependencies:
            for needed in dependency.candidates:
                self._dependents[needed].discard(name)
                if not self._dependents[needed]:
                    del self._dependents[needed]

    def _wire(self, name: str) -> _Wiring:
        spec = self._specs[name]
        dependencies = []
        asked: set[str | type] = set()
        complete = True
        for parameter in spec.parameters:
            wanted = spec.wanted(parameter, self._local_classes)
            complete = complete and wanted.resolved
            asked.add(parameter.name)
            candidates: tuple[str, ...] = ()
            if wanted.kind is not None:
                asked.add(wanted.kind)
                # A service that wraps another of its class does not mean itself.
                others = self._providers.get(wanted.kind, set()) - {name}
                candidates = tuple(sorted(others))
            if parameter.name in (candidates or self._specs):
                candidates = (parameter.name,)
            if candidates or not parameter.has_default:
                dependencies.append(
                    Dependency(parameter.name, candidates, wanted.lazy, parameter.keyword_only)
                )
        return _Wiring(tuple(dependencies), frozenset(asked), complete)

    def _unmet(self, spec: ServiceSpec, dependency: Dependency) -> ServiceError:
        where = f'(parameter "{dependency.parameter}" of {spec.label})'
        if dependency.candidates:
            listed = ", ".join(self._specs[name].named for name in dependency.candidates)
            return AmbiguousDependencyError(
                f"{spec.named} needs one of {listed} {where}, and nothing says which",
                hint="Name the parameter like the service that is meant.",
            )
        return MissingDependencyError(
            f'{spec.named} needs "{dependency.parameter}" {where}, which is not registered',
            hint=self._heir_of_wanted(spec, dependency)
            or did_you_mean(dependency.parameter, self._specs),
        )

    def _heir_of_wanted(self, spec: ServiceSpec, dependency: Dependency) -> str | None:
        (parameter,) = (one for one in spec.parameters if one.name == dependency.parameter)
        wanted = spec.wanted(parameter, self._local_classes).kind
        heirs = [
            name
            for kind, names in self._providers.items()
            for name in names
            if wanted in kind.__mro__ and name != spec.name
        ]
        if wanted is None or not heirs:
            return None
        return (
            f'"{min(heirs)}" provides a subclass of {wanted.__name__}: give the parameter its '
            f"name, or register it with a function that says it returns {wanted.__name__}."
        )

    def _refuse_cycles(self, names: Iterable[str]) -> None:
        # A new cycle runs through unjudged names only: all on it depend on what changed.
        among = dict.fromkeys(names)
        needs = {
            name: [
                dependency.name
                for dependency in self._wirings[name].dependencies
                if not dependency.lazy and dependency.name in among
            ]
            for name in among
        }
        try:
            graphlib.TopologicalSorter(needs).prepare()
        except graphlib.CycleError as error:
            circle: list[str] = error.args[1][:0:-1]  # it lists what is needed first
            start = circle.index(min(circle))
            path = [*circle[start:], *circle[: start + 1]]
            owners = {name: self._specs[name].owner for name in path}
            raise ServiceCycleError(path, owners=owners) from None

    def _way_to_scoped(self, name: str) -> tuple[str, ...]:
        came_from = {name: ""}
        waiting = [name]
        for one in waiting:
            for dependency in self._wirings[one].dependencies:
                needed = dependency.name
                if needed in came_from:
                    continue
                came_from[needed] = one
                lifetime = self._specs[needed].lifetime
                if lifetime == "scoped":
                    path = [needed]
                    while path[-1] != name:
                        path.append(came_from[path[-1]])
                    return tuple(reversed(path))
                if lifetime == "transient":
                    waiting.append(needed)
        return ()


def _copy_values(names_by_key: dict[Any, set[str]]) -> None:
    for key, names in names_by_key.items():
        names_by_key[key] = names.copy()


def _local_key(source: object) -> tuple[str, str] | None:
    """Return how a class that was defined inside a function is looked up; None for all else."""
    if isinstance(source, type) and "<locals>" in source.__qualname__:
        return source.__module__, source.__qualname__
    return None


def _escaped(name: str) -> str:
    """Return `name` for a quoted Mermaid label, in ASCII; `#34;` is how Mermaid writes a quote.

    Quotes do not protect all that stands between them: a line with `direction TB` in it is taken
    for that command, `style a:b#35;` loses its semicolon, `fa:fa-car` becomes an icon, and
    some versions read Markdown in all labels. So little is left as it is.
    """
    return _ESCAPED.sub(lambda char: f"#{ord(char[0])};", name)
