"""Bringing one plugin to life: import it, check what it says of itself, take what it declares.

All of it runs inside the transaction of `PluginManager`, which undoes it if any of it
fails.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from importlib.metadata import EntryPoint
from typing import Any

from truthgpt_core import hookspecs
from truthgpt_core.dynamic_factory import DynamicFactory
from truthgpt_core.errors import TruthGPTError, did_you_mean, in_one_line
from truthgpt_core.optimization import Optimization
from truthgpt_core.plugin_system import discovery
from truthgpt_core.plugin_system.code import PluginCode
from truthgpt_core.plugin_system.compatibility import satisfies
from truthgpt_core.plugin_system.discovery import ALIASES, OPTIMIZATIONS, Installed
from truthgpt_core.plugin_system.plugin import Plugin, PluginError, PluginRow


def load(row: PluginRow) -> object:
    """Import what the entry point of an installed plugin names; make it, if it is a class.

    Raises:
        PluginError: it cannot be imported or made.
    """
    assert row.entry_point is not None
    loaded = import_from(row.entry_point)
    if inspect.isclass(loaded):
        with PluginCode(_saying(f"{row.entry_point.value}() raised")):
            return loaded()
    return loaded


def name_of(plugin: object) -> str:
    """Return what a plugin that is registered by hand is called.

    Raises:
        PluginError: it does not say.
    """

    def refusal(error: BaseException) -> PluginError:
        if isinstance(error, PluginError):
            return PluginError(error.message, hint=error.hint)
        return PluginError(f"The name of {type(plugin).__name__} raised {in_one_line(error)}")

    with PluginCode(refusal):
        if isinstance(plugin, Plugin):
            return plugin.name
        return getattr(plugin, "__name__", None) or type(plugin).__name__


def dependencies_of(plugin: object) -> tuple[str, ...]:
    """Return the names of the plugins that one says it needs.

    Raises:
        PluginError: what it says is not a collection of names.
    """
    if not isinstance(plugin, Plugin):
        return ()
    with PluginCode(_saying("its dependencies raised")):
        declared: object = plugin.dependencies
        names = (
            None
            if isinstance(declared, str) or not isinstance(declared, Iterable)
            else tuple(declared)
        )
    if names is None or not all(isinstance(name, str) for name in names):
        raise PluginError(
            f"its dependencies are {declared!r}", hint="Return a list of names of plugins."
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


def shut_down(plugin: Plugin) -> None:
    """Tear a plugin down.

    Raises:
        PluginError: it raised; the rest of what it did can be undone all the same.
    """
    with PluginCode(_saying(f"{type(plugin).__name__}.shutdown() raised")):
        plugin.shutdown()


def as_plugin_error(error: BaseException) -> PluginError:
    """Return the error of a plugin whose activation raised `error`."""
    if isinstance(error, TruthGPTError):
        return PluginError(error.message, hint=error.hint)
    return PluginError(f"it failed to initialize: {in_one_line(error)}")


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
            partial(import_optimization, name, entry_point),
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


def check_hooks(plugin: object, options: Callable[[str], Mapping[str, Any] | None]) -> None:
    """See that each hook implementation is of a hook that there is, with arguments that it has.

    Args:
        plugin: the plugin.
        options: what pluggy says an attribute of the plugin is marked with; None if it is
            not a hook implementation.

    Raises:
        PluginError: there is no such hook, or no such argument.
    """
    hooks = {
        name: spec
        for name, spec in vars(hookspecs).items()
        if hasattr(spec, f"{hookspecs.PROJECT}_spec")
    }
    marked = {
        name: options_of.get("specname") or name
        for name in dir(plugin)
        if (options_of := options(name)) is not None
    }
    unknown = sorted(set(marked.values()) - hooks.keys())
    if unknown:
        raise PluginError(
            f"there is no hook named {', '.join(unknown)}", hint=did_you_mean(unknown[0], hooks)
        )
    for name, hook in marked.items():
        has = list(inspect.signature(hooks[hook]).parameters)
        known = {*has, "self", "cls"}
        wrong = [each for each in _arguments(getattr(plugin, name)) if each not in known]
        if wrong:
            suggestion = did_you_mean(wrong[0], has)
            arguments = f"It has {', '.join(has)}." if has else "It has none."
            raise PluginError(
                f"the hook {hook} has no argument {', '.join(wrong)}",
                hint=f"{suggestion} {arguments}" if suggestion else arguments,
            )


def _arguments(implementation: Callable[..., object]) -> list[str]:
    """Return the arguments that a hook implementation asks for: those without a default."""
    try:
        parameters = inspect.signature(implementation).parameters.values()
    except (TypeError, ValueError):
        return []  # pluggy says what is wrong with it
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [each.name for each in parameters if each.kind in kinds and each.default is each.empty]


def import_optimization(name: str, entry_point: EntryPoint) -> type[Optimization[Any]]:
    """Import an optimization and see that it is one, of that name.

    Raises:
        PluginError: it cannot be imported, or is not.
    """
    loaded = import_from(entry_point)
    if not (inspect.isclass(loaded) and issubclass(loaded, Optimization)):
        raise PluginError(f"{entry_point.value} is not a subclass of Optimization")
    called = getattr(loaded, "name", None)
    if called is None:
        raise PluginError(f"{entry_point.value} does not say its name")
    if called != name:
        raise PluginError(f'{entry_point.value} calls itself "{called}", not "{name}"')
    return loaded


def import_command(name: str, entry_point: EntryPoint) -> Any:
    """Import a command and see that it is one.

    Raises:
        PluginError: it cannot be imported, or is not.
    """
    import click

    loaded = import_from(entry_point)
    if not isinstance(loaded, click.Command):
        raise PluginError(f"{entry_point.value} is not a click command")
    return loaded


def import_from(entry_point: EntryPoint) -> Any:
    """Import what an entry point names.

    Raises:
        PluginError: it cannot be imported.
    """
    with PluginCode(_saying(f"{entry_point.value} cannot be imported:")):
        return entry_point.load()


def _saying(what: str) -> Callable[[BaseException], PluginError]:
    return lambda error: PluginError(f"{what} {in_one_line(error)}")


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
