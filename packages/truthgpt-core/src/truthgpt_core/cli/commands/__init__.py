"""The commands that the core itself has, each in its module, imported when it is called.

They are not entry points: what manages plugins must work whatever is installed, and
nothing that is installed can take their names.
"""

from __future__ import annotations

import atexit
import gc
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

OWN = {
    "config": "Show a training configuration as it is understood, or its JSON Schema.",
    "doctor": "Say what works on this machine and what does not, and how to mend it.",
    "plugins": "List the installed plugins, look at one, enable and disable them.",
    "services": "Draw the services that the plugins register, and who needs whom.",
}
"""One line about each, for `truthgpt --help`, which imports none of them."""


def load(name: str) -> click.Command:
    """Import one of the core's own commands; its module and its function have its name."""
    command: click.Command = getattr(import_module(f"{__name__}.{name}"), name)
    return command


def leave_quickly() -> None:
    """Spare the exit a last look at everything that was imported.

    For commands that run no code but the core's: a plugin may count on that look to close
    a file that it left open.
    """
    atexit.register(gc.freeze)
