"""Which plugin needs which: the order to activate them in, and what one takes with it.

Rows are by key, as `plugin_base.add_row` gives them out: the plugin's name, unless two
have the same one. Nothing here imports or changes a plugin.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set

from truthgpt_core.plugin_system.discovery import normalized
from truthgpt_core.plugin_system.plugin import PluginError, PluginRow, State

Rows = Mapping[str, PluginRow]

_UNUSABLE = (State.BROKEN, State.DISABLED)


def needs(rows: Rows) -> dict[str, set[str]]:
    """Say which others each plugin needs: those of the distributions that its own requires.

    What a plugin names as its `dependencies` counts too.
    """
    by_distribution: dict[str, set[str]] = {}
    for key, row in rows.items():
        if row.distribution is not None and row.entry_point is not None:
            by_distribution.setdefault(normalized(row.distribution.name), set()).add(key)
    return {
        key: {
            other
            for required in (row.distribution.requires if row.distribution else ())
            for other in by_distribution.get(required, ())
            if required != normalized(row.distribution.name if row.distribution else "")
        }
        | {name for name in row.dependencies if name in rows and name != key}
        for key, row in rows.items()
    }


def everything_needed(rows: Rows, key: str) -> set[str]:
    """Return a plugin and all that it needs, directly or through another."""
    return _closure(needs(rows), key)


def everything_needing(rows: Rows, key: str) -> set[str]:
    """Return a plugin and all that need it, directly or through another."""
    needed_by: dict[str, set[str]] = {}
    for one, others in needs(rows).items():
        for other in others:
            needed_by.setdefault(other, set()).add(one)
    return _closure(needed_by, key)


def dependencies_first(rows: Rows) -> list[str]:
    """Return the keys of all plugins, each after those that it needs; broken ones are left out.

    Plugins that do not need each other come in the order of their names.

    There is no cycle: plugins of one have been broken.
    """
    from graphlib import TopologicalSorter

    usable = {key: row for key, row in rows.items() if row.state is not State.BROKEN}
    edges = needs(usable)
    return list(
        TopologicalSorter({key: sorted(edges[key]) for key in sorted(edges)}).static_order()
    )


def hindrance(rows: Rows, key: str) -> tuple[State, str] | None:
    """Say what a plugin that would work otherwise becomes because of those it needs.

    Returns:
        Its state and the reason; None if all that it needs is active or may be yet.
    """
    for state in (*_UNUSABLE, State.INACTIVE):
        for other in sorted(needs(rows)[key]):
            if rows[other].state is state:
                return state, f'it needs plugin "{rows[other].name}", which is {state.value}'
    return None


def refuse_while_needed(rows: Rows, keys: Set[str], active: Set[str]) -> None:
    """Refuse to take plugins out of use that others in use need.

    Args:
        rows: all plugins.
        keys: those to be taken out of use.
        active: those in use.

    Raises:
        PluginError: another plugin in use needs one of them.
    """
    for key in sorted(keys):
        if others := sorted(everything_needing(rows, key) & active - keys):
            names = ", ".join(f'"{other}"' for other in others)
            raise PluginError(
                f'Plugin "{key}" is needed by plugins that are active: {names}',
                hint="Deactivate them first, or say cascade=True.",
            )


def hindered(rows: Rows) -> Iterator[tuple[str, State, str]]:
    """Yield plugins that are found, and cannot be used for want of others.

    Yields:
        Key, state and reason, as for `hindrance`.
    """
    edges = needs(rows)
    states = {key: row.state for key, row in rows.items()}
    for unusable in _UNUSABLE:
        waiting = sorted(key for key, state in states.items() if state is unusable)
        while waiting:
            other = waiting.pop(0)
            for key in sorted(key for key, needed in edges.items() if other in needed):
                if states[key] is State.FOUND:
                    states[key] = unusable
                    waiting.append(key)
                    reason = f'it needs plugin "{rows[other].name}", which is {unusable.value}'
                    yield key, unusable, reason


def _closure(edges: Mapping[str, Iterable[str]], start: str) -> set[str]:
    found, waiting = {start}, [start]
    while waiting:
        new = set(edges.get(waiting.pop(), ())) - found
        found |= new
        waiting += new
    return found
