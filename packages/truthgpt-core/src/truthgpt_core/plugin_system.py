"""Plugins: discover, judge, order, activate.

`discovery` does the first two without importing anything. Here plugins are put in
order of their dependencies and activated one by one, each in a transaction, so
that one which fails leaves nothing behind and becomes a row with a reason.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.metadata import EntryPoint
from typing import Any, cast

import pluggy

from truthgpt_core import catalogue, discovery, hookspecs
from truthgpt_core.discovery import ALIASES, OPTIMIZATIONS, Installed
from truthgpt_core.dynamic_factory import DynamicFactory, publish_factory
from truthgpt_core.errors import TruthGPTError, did_you_mean, in_one_line
from truthgpt_core.event_system import EventType, emit_event
from truthgpt_core.optimization import (
    Applied,
    Model,
    Optimization,
    OptimizationContext,
    OptimizationError,
)
from truthgpt_core.plugin_base import (
    STRICT,
    Plugin,
    PluginError,
    PluginRow,
    State,
    add_row,
    installed_rows,
)
from truthgpt_core.plugin_files import LoadedFile, PluginFile, find_files, load_file
from truthgpt_core.service_registry import ServiceContainer, get_container
from truthgpt_core.transaction import Transaction, record_undo

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

logger = logging.getLogger(__name__)


def make_factories() -> dict[str, DynamicFactory[Any]]:
    """Make the factories that plugins fill."""
    return {
        "optimizer_factory": DynamicFactory(name="optimizer_factory"),
        "scheduler_factory": DynamicFactory(name="scheduler_factory"),
        "dataset_factory": DynamicFactory(name="dataset_factory"),
        "model_source_factory": DynamicFactory(name="model_source_factory"),
        "optimization_factory": DynamicFactory(Optimization, name="optimization_factory"),
    }


class _Core:
    """The core's own hook implementations, which come last."""

    @hookspecs.hookimpl(trylast=True)
    def apply_optimization(
        self, optimization: Optimization[Any], model: Model, context: OptimizationContext
    ) -> Applied:
        return optimization.apply(model, context)


class PluginManager:
    """Finds plugins and activates them.

    Args:
        container: where plugins register services; the default container if None.
        strict: raise for a broken plugin instead of listing it; if None, the
            environment variable TRUTHGPT_STRICT=1 decides.

    Attributes:
        hooks: the hooks of all active plugins, to be called with keyword arguments.
        factories: the named factories that plugins fill.
    """

    def __init__(
        self, container: ServiceContainer | None = None, *, strict: bool | None = None
    ) -> None:
        self.container = container if container is not None else get_container()
        self.strict = os.environ.get(STRICT) == "1" if strict is None else strict
        self.factories: Mapping[str, DynamicFactory[Any]] = make_factories()
        self._rows: dict[str, PluginRow] = {}
        self._active: dict[str, Transaction] = {}
        self._discovered = False
        self._pluggy = pluggy.PluginManager(hookspecs.PROJECT)
        self._pluggy.add_hookspecs(hookspecs)
        self._core = _Core()
        self._pluggy.register(self._core, name=discovery.CORE)
        hook = self._pluggy.hook
        hook.register_services.call_historic(kwargs={"registry": self.container.registry})
        hook.register_components.call_historic(kwargs={"factories": self.factories})
        self.hooks = cast(hookspecs.Hooks, hook)

    def rows(self) -> list[PluginRow]:
        """List all plugins that are installed or registered, by name; imports none of them."""
        self._discover()
        return [self._rows[name] for name in sorted(self._rows)]

    def activate_all(self) -> None:
        """Import and activate every plugin that has nothing against it, dependencies first.

        One that was deactivated stays so.

        Raises:
            PluginError: in strict mode, for the first broken plugin.
        """
        self._discover()
        for row in self._rows.values():
            if self.strict and row.state is State.BROKEN:
                raise _is_broken(row)
        for name in _dependencies_first(self._rows.values()):
            if self._rows[name].state is State.FOUND:
                self._activate_or_break(self._rows[name])

    def activate(self, name: str) -> None:
        """Activate one plugin and, before it, those that its distribution requires.

        Raises:
            PluginError: there is no plugin of that name, or it is broken.
        """
        self._discover()
        if name not in self._rows:
            hint = did_you_mean(name, self._rows)
            raise PluginError(f'There is no plugin named "{name}"', hint=hint)
        requirements = _requirements(self._rows.values())
        wanted, waiting = {name}, [name]
        while waiting:
            for required in requirements.get(waiting.pop(), set()) - wanted:
                wanted.add(required)
                waiting.append(required)
        for each in _dependencies_first(self._rows.values()):
            if each in wanted and self._rows[each].state in (State.FOUND, State.INACTIVE):
                self._activate_or_break(self._rows[each])
        if self._rows[name].state is State.BROKEN:
            raise _is_broken(self._rows[name])

    def register_plugin(self, plugin: object, name: str | None = None) -> None:
        """Register a plugin by hand and activate it.

        Args:
            plugin: a `Plugin`, or any object or module with hook implementations.
            name: its name; a `Plugin` knows its own.

        Raises:
            PluginError: there is one of that name, it is a class, or it fails to initialize.
        """
        if inspect.isclass(plugin) and issubclass(plugin, Plugin):
            raise PluginError(
                f"{plugin.__name__} is a class", hint=f"Register {plugin.__name__}() instead."
            )
        name = name or (plugin.name if isinstance(plugin, Plugin) else _name_of(plugin))
        self._discover()
        if name in self._rows:
            raise PluginError(f'There is a plugin named "{name}" already')
        row = PluginRow(name)
        try:
            self._activate(row, lambda: plugin)
        except PluginError as error:
            raise PluginError(f'Plugin "{name}": {error.message}', hint=error.hint) from error
        self._rows[name] = row

    def load_plugins_from_directory(self, path: str | os.PathLike[str]) -> list[PluginRow]:
        """Load the Python files and packages of a directory as plugins, by name, and activate them.

        A file's plugins are the subclasses of `Plugin` that it defines; if there are
        none, and it has hook implementations, the module is one, with the file's name.
        Names that begin with `_` or `.` are left out. When a directory is loaded again,
        files with an active plugin stay as they are, and broken ones are tried again.

        Files are code, and whoever can write one can run anything: those that everyone
        may write and those whose real path is outside the directory are refused.

        Returns:
            What there is in the directory, by name; a file that is refused or fails is
            a row with a reason.

        Raises:
            PluginError: there is no such directory, or everyone may write into it; in
                strict mode, for the first broken plugin.
        """
        self._discover()
        found = [row for file in find_files(path) for row in self._load_file(file)]
        return sorted(found, key=lambda row: row.name)

    def deactivate(self, name: str) -> None:
        """Undo everything that activating the plugin did, newest first.

        One that is installed can be activated again. One that was registered by hand or
        comes from a file is forgotten.

        Raises:
            PluginError: it is not active.
        """
        if name not in self._active:
            hint = did_you_mean(name, self._active)
            raise PluginError(f'No active plugin is named "{name}"', hint=hint)
        self._active[name].rollback()

    def make_optimization(self, name: str, options: Mapping[str, Any]) -> Optimization[Any]:
        """Create an optimization by its name or an alias.

        Raises:
            OptimizationError: no active plugin has it (the error says what there
                is and, where that is known, what to install), its code cannot be
                imported, or its options are wrong.
        """
        self.activate_all()
        factory = self.factories["optimization_factory"]
        try:
            kind: type[Optimization[Any]] = factory.get_class(name)
        except TruthGPTError as error:
            raise self._no_optimization(name, error) from error
        return kind(**options)

    def optimization_names(self) -> list[str]:
        """The names, without aliases, of the optimizations that active plugins have."""
        self.activate_all()
        return list(self.factories["optimization_factory"].names())

    def _no_optimization(self, name: str, cause: TruthGPTError) -> OptimizationError:
        for row in self._rows.values():
            declared = row.distribution and {
                *row.distribution.names(OPTIMIZATIONS),
                *row.distribution.names(ALIASES),
            }
            if declared and name in declared:
                why = row.reason or _why_not_loaded(row, cause)
                return OptimizationError(f'"{name}" comes with plugin "{row.name}", but {why}')
        available = self.optimization_names()
        have = f"Available: {', '.join(available)}." if available else "None is installed."
        missing = catalogue.distribution_of("optimizations", name)
        if missing:
            return OptimizationError(
                f'Optimization "{name}" is not installed',
                hint=f"It comes with {missing}: pip install {missing}. {have}",
            )
        close = did_you_mean(name, [*available, *catalogue.known("optimizations")])
        return OptimizationError(
            f'There is no optimization named "{name}"', hint=f"{close} {have}" if close else have
        )

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        self._rows.update(installed_rows())

    def _activate_or_break(self, row: PluginRow, load: Callable[[], object] | None = None) -> None:
        try:
            self._activate(row, load or partial(_load, row))
        except PluginError as error:
            self._break(row, error)

    def _break(self, row: PluginRow, error: PluginError) -> None:
        row.state, row.reason = State.BROKEN, str(error)
        logger.debug("Plugin %r is broken", row.name, exc_info=error)
        emit_event(EventType.PLUGIN_FAILED, {"plugin": row.name, "reason": row.reason})
        if self.strict:
            raise _is_broken(row) from error

    def _activate(self, row: PluginRow, load: Callable[[], object]) -> None:
        transaction = Transaction()
        try:
            # Loading belongs to it: a module may register things when it is imported.
            with transaction:
                record_undo(partial(self._withdraw, row))
                self._set_up(row, load())
        except TruthGPTError as error:
            raise PluginError(error.message, hint=error.hint) from error
        except (Exception, SystemExit) as error:
            raise PluginError(f"it failed to initialize: {in_one_line(error)}") from error
        self._active[row.name] = transaction
        row.state, row.reason = State.ACTIVE, ""
        emit_event(EventType.PLUGIN_ACTIVATED, {"plugin": row.name})

    def _withdraw(self, row: PluginRow) -> None:
        if self._active.pop(row.name, None) is None:
            return  # it did not get as far as being active
        row.state = State.INACTIVE
        if row.entry_point is None:
            del self._rows[row.name]
        emit_event(EventType.PLUGIN_DEACTIVATED, {"plugin": row.name})

    def _load_file(self, file: PluginFile) -> list[PluginRow]:
        earlier = {key: row for key, row in self._rows.items() if row.file == file.path}
        active = [row for row in earlier.values() if row.state is State.ACTIVE]
        if active:
            return list(earlier.values())
        for key in earlier:
            del self._rows[key]
        try:
            loaded = load_file(file)
        except PluginError as error:
            row = add_row(self._rows, PluginRow(file.name, file=file.path))
            self._break(row, error)
            return [row]
        try:
            return [self._add_from_file(name, plugin, loaded) for name, plugin in loaded.plugins]
        finally:
            loaded.release()

    def _add_from_file(self, name: str, plugin: object, loaded: LoadedFile) -> PluginRow:
        taken = name in self._rows
        row = add_row(self._rows, PluginRow(name, file=loaded.file.path))
        if taken:
            self._break(row, PluginError(f'there is a plugin named "{name}" already'))
        else:
            self._activate_or_break(row, partial(loaded.use, plugin))
        return row

    def _set_up(self, row: PluginRow, plugin: object) -> None:
        if isinstance(plugin, Plugin):
            if row.entry_point is not None and plugin.name != row.name:
                raise PluginError(f'it calls itself "{plugin.name}", and its metadata does not')
            record_undo(plugin.shutdown)
            plugin.initialize(self.container.registry)
        # Recorded first: `register` keeps a plugin whose historic hooks raised.
        record_undo(partial(self._unregister, row.name, plugin))
        self._pluggy.register(plugin, name=row.name)
        self._put_core_last()
        unknown = [str(hook) for hook in self._unknown_hooks(plugin)]
        if unknown:
            hint = did_you_mean(unknown[0], _hook_names())
            raise PluginError(f"there is no hook named {', '.join(unknown)}", hint=hint)
        if row.distribution is not None:
            self._register_optimizations(row.distribution)

    def _register_optimizations(self, distribution: Installed) -> None:
        factory = self.factories["optimization_factory"]
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

    def _put_core_last(self) -> None:
        # Of two implementations with `trylast`, the one registered later is called last.
        self._pluggy.unregister(self._core)
        self._pluggy.register(self._core, name=discovery.CORE)

    def _unregister(self, name: str, plugin: object) -> None:
        # Refused, it may be there all the same, under the name that it had before.
        if self._pluggy.get_plugin(name) is plugin:
            self._pluggy.unregister(plugin)

    def _unknown_hooks(self, plugin: object) -> Iterable[str]:
        known = _hook_names()
        for name in dir(plugin):
            if name not in known and self._pluggy.parse_hookimpl_opts(plugin, name) is not None:
                yield name


_default: PluginManager | None = None


def get_plugin_manager() -> PluginManager:
    """Return the process's plugin manager, which uses the default container."""
    global _default
    if _default is None:
        _default = PluginManager()
        for factory in _default.factories.values():
            publish_factory(factory)
    return _default


def _is_broken(row: PluginRow) -> PluginError:
    return PluginError(f'Plugin "{row.name}" is broken: {row.reason}')


def _load(row: PluginRow) -> object:
    assert row.entry_point is not None
    loaded = _import(row.entry_point)
    if inspect.isclass(loaded):
        try:
            return loaded()
        except (Exception, SystemExit) as error:
            raise PluginError(f"{row.entry_point.value}() raised {in_one_line(error)}") from error
    return loaded


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


def _why_not_loaded(row: PluginRow, cause: TruthGPTError) -> str:
    if row.state is not State.ACTIVE:
        return "it is not active"
    # What the loader said, without what the factory says of it.
    return str(cause.__cause__ if isinstance(cause.__cause__, PluginError) else cause)


def _requirements(rows: Iterable[PluginRow]) -> dict[str, set[str]]:
    """Say which plugins each plugin's distribution requires, broken ones left out."""
    usable = [row for row in rows if row.state is not State.BROKEN]
    by_distribution: dict[str, set[str]] = {}
    for row in usable:
        if row.distribution is not None:
            key = discovery.normalized(row.distribution.name)
            by_distribution.setdefault(key, set()).add(row.name)
    return {
        row.name: {
            name
            for required in (row.distribution.requires if row.distribution else ())
            for name in by_distribution.get(required, ())
            if name != row.name
        }
        for row in usable
    }


def _dependencies_first(rows: Iterable[PluginRow]) -> list[str]:
    from graphlib import TopologicalSorter

    sorter: TopologicalSorter[str] = TopologicalSorter()
    requirements = _requirements(rows)
    for name in sorted(requirements):
        sorter.add(name, *sorted(requirements[name]))
    # There is no cycle: `discovery.judge` has broken the plugins of one.
    return list(sorter.static_order())


def _hook_names() -> frozenset[str]:
    return frozenset(
        name for name in vars(hookspecs) if hasattr(getattr(hookspecs, name), "truthgpt_spec")
    )


def _name_of(plugin: object) -> str:
    return getattr(plugin, "__name__", None) or type(plugin).__name__
