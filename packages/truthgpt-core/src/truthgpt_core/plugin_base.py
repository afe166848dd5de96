"""What a plugin is, and what is known of one; import these names from `plugin_system`."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING

from truthgpt_core.discovery import OPTIMIZATIONS, PLUGINS, Installed, discover, judge
from truthgpt_core.errors import TruthGPTError

if TYPE_CHECKING:
    from truthgpt_core.service_registry import ServiceRegistry


STRICT = "TRUTHGPT_STRICT"
"""The environment variable that, set to 1, makes a broken plugin fatal."""


class PluginError(TruthGPTError):
    """A plugin cannot be used."""


class Plugin:
    """A plugin as a class, for one that has more to do than implement hooks.

    Subclasses may implement hooks as methods, marked with `hookimpl`.
    """

    @property
    def name(self) -> str:
        """Its name, the same as in its entry point."""
        raise PluginError(f"{type(self).__name__} does not say its name")

    @property
    def version(self) -> str:
        """Its version."""
        raise PluginError(f"{type(self).__name__} does not say its version")

    def initialize(self, registry: ServiceRegistry) -> None:
        """Set up, when the plugin is activated; what is registered here is undone with it."""

    def shutdown(self) -> None:
        """Tear down, when the plugin is deactivated."""


class State(enum.StrEnum):
    """What has become of a plugin."""

    FOUND = "found"
    ACTIVE = "active"
    INACTIVE = "inactive"
    BROKEN = "broken"


@dataclass
class PluginRow:
    """A plugin and what is known of it.

    Attributes:
        name: the plugin's name.
        state: what has become of it.
        reason: why it is broken; empty if it is not.
        distribution: the distribution it comes from; None if it was registered by hand
            or comes from a file.
        file: the file it comes from; None if it comes from anywhere else.
    """

    name: str
    state: State = State.FOUND
    reason: str = ""
    distribution: Installed | None = None
    entry_point: EntryPoint | None = field(default=None, repr=False)
    file: Path | None = None

    @property
    def version(self) -> str:
        """The version of its distribution; empty if it has none."""
        return self.distribution.version if self.distribution else ""

    @property
    def api(self) -> str:
        """What it requires of the core; empty if it does not say."""
        return self.distribution.api if self.distribution else ""

    @property
    def optimizations(self) -> list[str]:
        """The names of the optimizations that its distribution has, aliases left out."""
        return self.distribution.names(OPTIMIZATIONS) if self.distribution else []


def add_row(rows: dict[str, PluginRow], row: PluginRow) -> PluginRow:
    """Add a row under the plugin's name or, if that is taken, also its origin's."""
    key = row.name
    if key in rows:
        key = f"{row.name} ({row.distribution.name if row.distribution else row.file})"
    rows[key] = row
    return row


def installed_rows() -> dict[str, PluginRow]:
    """Find the plugins that are installed and judge them; imports none, and little of the core."""
    rows: dict[str, PluginRow] = {}
    installed = discover()
    reasons = judge(installed)
    for distribution in installed:
        reason = reasons.get(distribution.name, "")
        state = State.BROKEN if reason else State.FOUND
        entry_points = distribution.entry_points.get(PLUGINS, {})
        for name, entry_point in entry_points.items():
            add_row(rows, PluginRow(name, state, reason, distribution, entry_point))
        if reason and not entry_points:
            add_row(rows, PluginRow(distribution.name, state, reason, distribution))
    return rows
