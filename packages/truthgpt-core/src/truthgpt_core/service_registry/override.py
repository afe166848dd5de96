"""Overrides: what is set aside while something else stands for a service, and comes back."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from truthgpt_core.service_registry.graph import ServiceGraph
from truthgpt_core.service_registry.keeping import Keeper, Kept
from truthgpt_core.service_registry.spec import ServiceSpec

Groups = list[tuple[Keeper, dict[str, Kept]]]
"""Instances by name, with the container or the scope that kept them."""


@dataclass(eq=False)
class Override:
    """One override that is in force.

    Attributes:
        name: the service that is overridden.
        spec: what stands for it.
        world: the graph as it is without this override and those that began later.
        began: what was finished before this, as `Kept.finished` counts, knows nothing of it.
        set_aside: what was built in that world and is built otherwise in this one.
    """

    name: str
    spec: ServiceSpec
    world: ServiceGraph
    began: int
    set_aside: Groups = field(default_factory=list)


class Overrides:
    """The overrides in force, in the order in which they began. It does no locking.

    The graph shows what overrides a service, and not what the service itself needs. So
    each override keeps the graph without it, and a change is made in all of them: there
    it tells which of the instances that were set aside cannot come back.

    Args:
        present: returns the instances that are not set aside, by name.
    """

    def __init__(self, present: Callable[[], list[dict[str, Kept]]]) -> None:
        self._present = present
        self._in_force: list[Override] = []

    def begin(self, override: Override) -> None:
        """Put an override in force, later than all others."""
        self._in_force.append(override)

    def spec(self, name: str) -> ServiceSpec | None:
        """Return what stands for `name`, or None if nothing overrides it."""
        return next((one.spec for one in reversed(self._in_force) if one.name == name), None)

    def change(self, name: str, spec: ServiceSpec | None) -> list[dict[str, Kept]]:
        """Let `name` be registered as `spec`, or not at all.

        Returns:
            The instances that were set aside and cannot come back.
        """
        return self._change(name, spec, 0)

    def take(self, keeper: Keeper) -> list[dict[str, Kept]]:
        """Return what was set aside of a container or a scope that is closed, and forget it."""
        taken = []
        for override in self._in_force:
            taken += [kept for at, kept in override.set_aside if at is keeper]
            override.set_aside = [(at, kept) for at, kept in override.set_aside if at is not keeper]
        return taken

    def end(self, override: Override) -> list[dict[str, Kept]]:
        """Put an override out of force, whether or not it is the last that began.

        What comes back stays in its `set_aside`. What a later one would have set aside,
        had it been there, is now for that one to bring back.

        Returns:
            The instances that later ones set aside and that cannot come back.
        """
        place = self._in_force.index(override)
        del self._in_force[place]
        name = override.name
        world = override.world
        lost = self._change(name, world.spec(name) if name in world else None, place)
        for at, later in enumerate(self._in_force[place:], place):
            later.world.wire()
            known = self._known(at) + _items(override.set_aside)
            names = holders(later.world, {later.name}, known)
            for keeper, kept in override.set_aside:
                taken = {one: kept.pop(one) for one in kept.keys() & names}
                twice = {
                    one
                    for other, mine in later.set_aside
                    if other is keeper
                    for one in mine.keys() & taken.keys()
                }
                lost += self._take_built_on(twice, at)
                later.set_aside.append((keeper, taken))
        return lost

    def _change(self, name: str, spec: ServiceSpec | None, start: int) -> list[dict[str, Kept]]:
        outdated: list[dict[str, Kept]] = []
        for place, override in enumerate(self._in_force[start:], start):
            outdated += self._take_built_on(override.world.put(name, spec), place)
            if override.name == name:  # that is all that the later ones see
                break
        return outdated

    def _take_built_on(self, names: set[str], place: int) -> list[dict[str, Kept]]:
        override = self._in_force[place]
        names = holders(override.world, names, self._known(place))
        return [
            {name: kept.pop(name) for name in kept.keys() & names} for _, kept in override.set_aside
        ]

    def _known(self, place: int) -> list[tuple[str, Kept]]:
        """Return the instances that what an override set aside could be built on."""
        groups = self._present()
        for override in self._in_force[place:]:
            groups += [kept for _, kept in override.set_aside]
        began = self._in_force[place].began
        return [
            (name, one) for kept in groups for name, one in kept.items() if one.finished < began
        ]


def holders(
    graph: ServiceGraph, names: Collection[str], known: Collection[tuple[str, Kept]]
) -> set[str]:
    """Return `names` and all that needs one of them or, as `known` tells, got one by hand."""
    found = graph.dependents(names)
    while new := {
        name for name, one in known if name not in found and not found.isdisjoint(one.by_hand)
    }:
        found |= graph.dependents(new)
    return found


def _items(groups: Groups) -> list[tuple[str, Kept]]:
    return [(name, one) for _, kept in groups for name, one in kept.items()]
