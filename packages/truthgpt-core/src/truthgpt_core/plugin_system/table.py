"""The table of installed plugins: what is found, what is switched off, what cannot work.

Everything here is known from metadata, before any plugin is imported.
"""

from __future__ import annotations

from collections.abc import Iterable

from truthgpt_core.errors import did_you_mean
from truthgpt_core.plugin_system.compatibility import judge
from truthgpt_core.plugin_system.discovery import PLUGINS, Installed, discover
from truthgpt_core.plugin_system.order import hindered
from truthgpt_core.plugin_system.plugin import PluginRow, State, add_row
from truthgpt_core.plugin_system.switches import Switches


def installed_rows(
    installed: Iterable[Installed] | None = None, switches: Switches | None = None
) -> dict[str, PluginRow]:
    """Find the plugins that are installed and judge them; imports none, and little of the core.

    Args:
        installed: what there is; found out unless given.
        switches: what is switched off; read unless given.

    Returns:
        Rows by key: a plugin's name or, if two have it, the name and the distribution.

    Raises:
        TruthGPTError: the settings that say what is disabled cannot be read.
    """
    everything = discover() if installed is None else list(installed)
    switches = Switches.read() if switches is None else switches
    reasons = judge(everything, switched_off(everything, switches))
    found = []
    for distribution in everything:
        broken = reasons.get(distribution.name, "")
        entry_points = distribution.entry_points.get(PLUGINS, {})
        for name, entry_point in entry_points.items():
            reason = switches.reason(name, distribution.name)
            state = State.DISABLED if reason else State.BROKEN if broken else State.FOUND
            found.append(PluginRow(name, state, reason or broken, distribution, entry_point))
        if broken and not entry_points:
            found.append(PluginRow(distribution.name, State.BROKEN, broken, distribution))
    rows: dict[str, PluginRow] = {}
    # Of two that have a name, the one that is not switched off is meant by it.
    for row in sorted(found, key=lambda row: row.state is State.DISABLED):
        add_row(rows, row)
    for key, state, reason in list(hindered(rows)):
        rows[key].state, rows[key].reason = state, reason
    return rows


def switched_off(installed: Iterable[Installed], switches: Switches) -> set[str]:
    """Return the names of the distributions that have plugins, all of them switched off."""
    return {
        each.name
        for each in installed
        if (names := each.names(PLUGINS))
        and all(switches.reason(name, each.name) for name in names)
    }


def why_unusable(distribution: str, rows: Iterable[PluginRow]) -> str:
    """Say why what a distribution has cannot be used; empty if it can.

    Args:
        distribution: its name.
        rows: all plugins that there are.
    """
    own = [row for row in rows if row.distribution and row.distribution.name == distribution]
    for row in own:
        if row.state is State.BROKEN:
            return row.reason
    return own[0].reason if own and all(row.state is State.DISABLED for row in own) else ""


def strangers(switches: Switches, rows: Iterable[PluginRow]) -> list[str]:
    """Say which names in the environment no plugin has, each with the one that may be meant.

    Args:
        switches: what is switched off.
        rows: all plugins that there are.
    """
    known = {
        name
        for row in rows
        for name in (row.name, row.distribution.name if row.distribution else row.name)
    }
    return [
        " ".join(filter(None, (f'{variable} names "{name}", and no plugin has that name.', hint)))
        for variable, names in switches.environment_names().items()
        for name in sorted(names - known)
        for hint in [did_you_mean(name, known)]
    ]
