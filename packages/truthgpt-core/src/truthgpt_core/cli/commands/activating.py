"""Activating the installed plugins for a command that shows what they register."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from truthgpt_core.terminal_text import harmless

if TYPE_CHECKING:
    from truthgpt_core.plugin_system import PluginManager


def activate_plugins() -> PluginManager:
    """Activate all installed plugins, with a line on stderr for each that is broken.

    Returns:
        The process's plugin manager.

    Raises:
        PluginError: in strict mode, for the first broken plugin.
    """
    from truthgpt_core.plugin_system import State, get_plugin_manager

    manager = get_plugin_manager()
    manager.activate_all()
    for row in manager.rows():
        if row.state is State.BROKEN:
            line = f'truthgpt: plugin "{row.name}" is broken: {row.reason}'
            click.echo(harmless(line), err=True)
    return manager
