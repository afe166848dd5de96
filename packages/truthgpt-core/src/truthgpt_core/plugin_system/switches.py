"""Which plugins the user has switched off: for good with a command, for once in the environment.

`truthgpt plugins disable NAME` leaves an empty file for each name in the settings
directory. One file each, so that two commands at once, a crash or a full disk cannot
lose or garble what was decided before. `TRUTHGPT_PLUGINS=a,b` switches all others off,
`TRUTHGPT_PLUGINS_BLOCK=a,b` these. All work on names alone, whether or not what has
the name can be imported, or is installed.

A name is a plugin's or a distribution's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from truthgpt_core.errors import TruthGPTError
from truthgpt_core.paths import SETTINGS, flush_to_disk, settings_dir
from truthgpt_core.plugin_system.discovery import normalized

ALLOW = "TRUTHGPT_PLUGINS"
BLOCK = "TRUTHGPT_PLUGINS_BLOCK"

_SUFFIX = ".disabled"


@dataclass(frozen=True)
class Switches:
    """What is switched off at one moment.

    Attributes:
        disabled: names that were disabled with the command.
        allowed: the only names that are on; None if all are.
        blocked: names that the environment switches off.
    """

    disabled: frozenset[str] = frozenset()
    allowed: frozenset[str] | None = None
    blocked: frozenset[str] = frozenset()

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None) -> Switches:
        """Read the settings directory and the environment.

        Args:
            environment: the variables; those of the process unless given.

        Raises:
            TruthGPTError: the settings cannot be read.
        """
        variables = os.environ if environment is None else environment
        allowed = variables.get(ALLOW)
        return cls(
            disabled=disabled_names(),
            allowed=None if allowed is None else frozenset(_names(allowed)),
            blocked=frozenset(_names(variables.get(BLOCK, ""))),
        )

    def reason(self, plugin: str, distribution: str | None = None) -> str:
        """Say why a plugin is off; empty if it is on.

        Args:
            plugin: its name.
            distribution: the name of its distribution, if it has one.
        """
        if name := _match(self.disabled, plugin, distribution):
            return f"it is disabled: truthgpt plugins enable {name}"
        if name := _match(self.blocked, plugin, distribution):
            return f"it is switched off by {BLOCK}, which names {name}"
        if self.allowed is not None and not _match(self.allowed, plugin, distribution):
            return f"it is switched off by {ALLOW}, which does not name it"
        return ""

    def environment_names(self) -> dict[str, frozenset[str]]:
        """Return the names that each variable of the environment gives."""
        return {ALLOW: self.allowed or frozenset(), BLOCK: self.blocked}


def disabled_names() -> frozenset[str]:
    """Return the names that were disabled and not enabled since.

    Raises:
        TruthGPTError: the settings cannot be read.
    """
    folder = _folder()
    try:
        files = [each.name for each in folder.iterdir()]
    except FileNotFoundError:
        return frozenset()
    except OSError as error:
        raise _unusable("read", folder, error) from error
    return frozenset(
        unquote(file.removesuffix(_SUFFIX)) for file in files if file.endswith(_SUFFIX)
    )


def disable(name: str) -> None:
    """Switch a name off, for this process and all later ones. Doing so again changes nothing.

    Raises:
        TruthGPTError: it cannot be written down; then nothing has changed.
    """
    file = _file(name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        flush_to_disk(file.parent)
    except OSError as error:
        raise _unusable("written", file, error) from error


def enable(name: str) -> bool:
    """Take back what `disable` did.

    Returns:
        Whether the name was disabled.

    Raises:
        TruthGPTError: it cannot be undone; then nothing has changed.
    """
    file = _file(name)
    try:
        file.unlink()
        flush_to_disk(file.parent)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unusable("written", file, error) from error
    return True


def _folder() -> Path:
    return settings_dir("disabled_plugins")


def _file(name: str) -> Path:
    return _folder() / f"{quote(name, safe='')}{_SUFFIX}"


def _unusable(verb: str, path: Path, error: OSError) -> TruthGPTError:
    why = error.strerror or str(error)
    return TruthGPTError(
        f"Which plugins are disabled cannot be {verb}: {path}: {why}",
        hint=f"{SETTINGS} names another directory for settings.",
    )


def _names(text: str) -> Iterable[str]:
    return filter(None, (each.strip() for each in text.split(",")))


def _match(names: frozenset[str], plugin: str, distribution: str | None) -> str:
    if plugin in names:
        return plugin
    if distribution is not None:
        for name in sorted(names):
            if normalized(name) == normalized(distribution):
                return name
    return ""
