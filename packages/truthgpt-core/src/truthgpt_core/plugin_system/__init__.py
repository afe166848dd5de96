"""Plugins: found without being imported, judged from metadata, activated whole or not at all.

The names here are imported when first used: `truthgpt --help` and `truthgpt plugins` read
metadata with the modules of this package, and must not import all of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from truthgpt_core.plugin_system.builtin import make_factories
    from truthgpt_core.plugin_system.manager import PluginManager, get_plugin_manager
    from truthgpt_core.plugin_system.plugin import STRICT, Plugin, PluginError, PluginRow, State

__all__ = [
    "STRICT",
    "Plugin",
    "PluginError",
    "PluginManager",
    "PluginRow",
    "State",
    "get_plugin_manager",
    "make_factories",
]

_MODULES = {
    "PluginManager": "manager",
    "get_plugin_manager": "manager",
    "make_factories": "builtin",
} | dict.fromkeys(("STRICT", "Plugin", "PluginError", "PluginRow", "State"), "plugin")


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
