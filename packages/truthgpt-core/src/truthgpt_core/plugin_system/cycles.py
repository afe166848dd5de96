"""Finding what needs itself through others."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter


def find_cycles(edges: Mapping[str, Collection[str]]) -> Iterator[list[str]]:
    """Yield cycles that have no member in common, until none is left without one of these.

    Args:
        edges: what each one needs; what is not a key needs nothing.

    Yields:
        The members of a cycle, each followed by one that it needs, the last by the first.
    """
    left = {name: set(needed) - {name} for name, needed in edges.items()}
    while True:
        try:
            # In the order of their names, so that the same cycle is found every time.
            graph = {name: sorted(left[name] & left.keys()) for name in sorted(left)}
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            cycle: list[str] = error.args[1][:0:-1]
            for name in cycle:
                del left[name]
            yield cycle
        else:
            return
