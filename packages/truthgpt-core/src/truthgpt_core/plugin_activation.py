"""Bringing one plugin to life: import it, check what it says of itself, take what it declares.

All of it runs inside the transaction of `PluginManager`, which undoes it if any of it
fails.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable
from functools import partial
from importlib.metadata import EntryPoint
from typing import Any

from truthgpt_core import discovery, hookspecs
from truthgpt_core.discovery import ALIASES, OPTIMIZATIONS, Installed
from truthgpt_core.dynamic_factory import DynamicFactory
from truthgpt_core.errors import in_one_line
from truthgpt_core.judging import satisfies
from truthgpt_core.optimization import Optimization
from truthgpt_core.plugin_base import Plugin, PluginError, PluginRow


def load(row: PluginRow) -> object:
    """Import what the entry point of an installed plugin names; make it, if it is a class.

    Raises:
        PluginError: it cannot be imported or made.
    """
    assert row.entry_point is not None
    loaded = _import(row.entry_point)
    if inspect.isclass(loaded):
        try:
            return loaded()
        except (Exception, SystemExit) as error:
            raise PluginError(f"{row.entry_point.value}() raised {in_one_line(error)}") from error
    return loaded


def dependencies_of(plugin: object) -> tuple[str, ...]:
    """Return the names of the plugins that one says it needs.

    Raises:
        PluginError: what it says is no collection of names.
    """
    if not isinstance(plugin, Plugin):
        return ()
    try:
        said: object = plugin.dependencies
    except Exception as error:
        raise PluginError(f"its dependencies raised {in_one_line(error)}") from error
    names = None if isinstance(said, str) or not isinstance(said, Iterable) else tuple(said)
    if names is None or not all(isinstance(name, str) for name in names):
        raise PluginError(
            f"its dependencies are {said!r}", hint="Return a list of names of plugins."
        )
    return names


def check(plugin: Plugin, row: PluginRow, needed: Collection[str]) -> None:
    """Check what a plugin says of itself against its metadata or, without any, this core.

    Args:
        plugin: the plugin.
        row: its row; a plugin with no distribution has its version and API entered there.
        needed: names of the plugins that its distribution requires.

    Raises:
        PluginError: they disagree, or it was written for another core.
    """
    distribution = row.distribution
    if distribution is None:
        row.own_version, row.own_api = plugin.version, plugin.api_version
        have = discovery.installed_version(discovery.CORE) or ""
        if not _is_specifier(plugin.api_version):
            raise PluginError(
                f"its api_version is {plugin.api_version!r}", hint='Write it as ">=0.1,<0.2".'
            )
        if not satisfies(have, plugin.api_version):
            raise PluginError(
                f"it was written for {discovery.CORE}{plugin.api_version}, and {have} is installed"
            )
        return
    if plugin.name != row.name:
        raise PluginError(f'it calls itself "{plugin.name}", and its metadata does not')
    if not satisfies(distribution.version, f"=={plugin.version}"):
        raise PluginError(
            f"it says that its version is {plugin.version}, "
            f"and its metadata says {distribution.version}",
            hint=f'Return importlib.metadata.version("{distribution.name}").',
        )
    if plugin.api_version and not _same_specifier(plugin.api_version, distribution.api):
        raise PluginError(
            f"it says that it was written for {discovery.CORE} {plugin.api_version}, "
            f"and its metadata says {distribution.api or 'any'}"
        )
    for name in dependencies_of(plugin):
        if name not in needed:
            raise PluginError(
                f'it says that it depends on plugin "{name}", and its metadata requires '
                "no distribution that has that plugin"
            )


def register_optimizations(factory: DynamicFactory[Any], distribution: Installed) -> None:
    """Register the optimizations that a distribution declares; each is imported when it is made.

    Raises:
        PluginError: an alias is for no optimization of the distribution.
        FactoryError: a name will not do, or is taken.
    """
    by_value: dict[str, str] = {}
    for name, entry_point in distribution.entry_points.get(OPTIMIZATIONS, {}).items():
        factory.register_lazy(
            name,
            partial(_load_optimization, name, entry_point),
            describe=distribution.name,
            target=entry_point.value,
        )
        by_value[entry_point.value] = name
    for alias, entry_point in distribution.entry_points.get(ALIASES, {}).items():
        if entry_point.value not in by_value:
            raise PluginError(
                f'the alias "{alias}" is for {entry_point.value}, no optimization of it'
            )
        factory.register_alias(alias, by_value[entry_point.value])


def hook_names() -> frozenset[str]:
    """Return the names of all hooks that there are."""
    return frozenset(
        name for name in vars(hookspecs) if hasattr(getattr(hookspecs, name), "truthgpt_spec")
    )


def _load_optimization(name: str, entry_point: EntryPoint) -> type[Optimization[Any]]:
    loaded = _import(entry_point)
    if not (inspect.isclass(loaded) and issubclass(loaded, Optimization)):
        raise PluginError(f"{entry_point.value} is no subclass of Optimization")
    called = getattr(loaded, "name", None)
    if called is None:
        raise PluginError(f"{entry_point.value} does not say its name")
    if called != name:
        raise PluginError(f'{entry_point.value} calls itself "{called}", not "{name}"')
    return loaded


def _import(entry_point: EntryPoint) -> Any:
    try:
        return entry_point.load()
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{entry_point.value} cannot be imported: {in_one_line(error)}"
        ) from error


def _is_specifier(versions: object) -> bool:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        SpecifierSet(versions)  # type: ignore[arg-type]  # plugins are not all typed
    except (InvalidSpecifier, AttributeError, TypeError):
        return False
    return True


def _same_specifier(one: str, other: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return _is_specifier(one) and SpecifierSet(one) == SpecifierSet(other)
