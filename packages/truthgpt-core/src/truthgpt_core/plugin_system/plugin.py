"""What a plugin is, and what is known of one; import these names from `plugin_system`."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING

from truthgpt_core.errors import TruthGPTError
from truthgpt_core.plugin_system.discovery import OPTIMIZATIONS, Installed, normalized

if TYPE_CHECKING:
    from truthgpt_core.service_registry import ServiceRegistry


STRICT = "TRUTHGPT_STRICT"
"""The environment variable that, set to 1, makes a broken plugin fatal."""


class PluginError(TruthGPTError):
    """A plugin cannot be used."""


class Plugin:
    """A plugin as a class, for one that has more to do than implement hooks.

    Subclasses may implement hooks as methods, marked with `hookimpl`. What a plugin
    registers belongs into these and `initialize`. A module is imported once: what it
    registers then is undone with the plugin too, and does not come back when the plugin is
    activated again.
    """

    @property
    def name(self) -> str:
        """Its name, the same as in its entry point."""
        raise PluginError(f"{type(self).__name__} does not say its name")

    @property
    def version(self) -> str:
        """Its version."""
        raise PluginError(f"{type(self).__name__} does not say its version")

    @property
    def dependencies(self) -> Iterable[str]:
        """Names of the plugins that must be active before it is.

        One that is installed says so in its metadata, which is known before it is
        imported: its distribution requires theirs. What is named here must agree.
        """
        return ()

    @property
    def api_version(self) -> str:
        """The versions of truthgpt-core that it was written for, such as ">=0.1,<0.2".

        Empty if it does not say. One that is installed says so in its metadata, and
        what is said here must agree.
        """
        return ""

    def initialize(self, registry: ServiceRegistry) -> None:
        """Set up, when the plugin is activated; what is registered here is undone with it."""

    def shutdown(self) -> None:
        """Tear down, when the plugin is deactivated."""


class State(enum.StrEnum):
    """What has become of a plugin."""

    FOUND = "found"
    ACTIVE = "active"
    INACTIVE = "inactive"
    DISABLED = "disabled"
    BROKEN = "broken"


@dataclass
class PluginRow:
    """A plugin and what is known of it.

    Attributes:
        name: the plugin's name.
        state: what has become of it.
        reason: why it is broken, disabled or inactive; empty if it is not.
        distribution: the distribution it comes from; None if it was registered by hand
            or comes from a file.
        file: the file it comes from; None if it comes from anywhere else.
        dependencies: names of the plugins that it says itself it needs.
        hooks: names of the hooks that it implements; None unless it is active.
        load_seconds: how long importing and activating it took; None unless it is active.
        key: what tells it from all others: its name, unless another has it.
        own_version: the version that it says it has, if it has no distribution.
        own_api: the versions of the core that it says it is for, likewise.
    """

    name: str
    state: State = State.FOUND
    reason: str = ""
    distribution: Installed | None = None
    entry_point: EntryPoint | None = field(default=None, repr=False)
    file: Path | None = None
    dependencies: tuple[str, ...] = ()
    hooks: tuple[str, ...] | None = None
    load_seconds: float | None = None
    key: str = field(default="", repr=False)
    own_version: str = field(default="", repr=False)
    own_api: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        self.key = self.key or self.name

    @property
    def version(self) -> str:
        """The version of its distribution or, without one, its own; empty if there is none."""
        return self.distribution.version if self.distribution else self.own_version

    @property
    def api(self) -> str:
        """What it requires of the core; empty if it does not say."""
        return self.distribution.api if self.distribution else self.own_api

    @property
    def optimizations(self) -> list[str]:
        """The names of the optimizations that its distribution has, aliases left out."""
        return self.distribution.names(OPTIMIZATIONS) if self.distribution else []

    def as_error(self) -> PluginError:
        """Return the error that says that it is broken, and why."""
        return PluginError(f'Plugin "{self.name}" is broken: {self.reason}')

    def goes_by(self, name: str) -> bool:
        """Return whether this is its name or, however it is written, its distribution's."""
        of = self.distribution
        return name == self.name or (of is not None and normalized(name) == normalized(of.name))


def add_row(rows: dict[str, PluginRow], row: PluginRow) -> PluginRow:
    """Add a row under the plugin's name or, if that is taken, also its origin's."""
    if row.name in rows:
        row.key = f"{row.name} ({row.distribution.name if row.distribution else row.file})"
    rows[row.key] = row
    return row
