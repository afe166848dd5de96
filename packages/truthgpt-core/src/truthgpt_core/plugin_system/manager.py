"""Plugins: discover, judge, order, activate.

`plugin_listing` does the first two without importing anything, `plugin_order` says which
needs which. Here plugins are activated one by one, each in a transaction, so that one
which fails leaves nothing behind and becomes a row with a reason.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from time import perf_counter
from typing import Any, cast

import pluggy

from truthgpt_core import hookspecs
from truthgpt_core.config import ConfigSections, get_config_sections
from truthgpt_core.dynamic_factory import DynamicFactory, publish_factory
from truthgpt_core.errors import TruthGPTError, did_you_mean
from truthgpt_core.event_system import (
    EventEmitter,
    PluginActivated,
    PluginDeactivated,
    PluginFailed,
    get_event_emitter,
)
from truthgpt_core.optimization import Optimization
from truthgpt_core.plugin_system import activation, discovery, order, switches
from truthgpt_core.plugin_system.builtin import CorePlugin, make_factories
from truthgpt_core.plugin_system.code import PluginCode
from truthgpt_core.plugin_system.cycles import find_cycles
from truthgpt_core.plugin_system.directory import LoadedFile, PluginFile, find_files, load_file
from truthgpt_core.plugin_system.locking import one_at_a_time
from truthgpt_core.plugin_system.lookup import not_available
from truthgpt_core.plugin_system.plugin import (
    STRICT,
    Plugin,
    PluginError,
    PluginRow,
    State,
    add_row,
)
from truthgpt_core.plugin_system.switches import Switches
from truthgpt_core.plugin_system.table import installed_rows
from truthgpt_core.service_registry import ServiceContainer, get_container
from truthgpt_core.transaction import Transaction, record_undo

logger = logging.getLogger(__name__)


class PluginManager:
    """Finds plugins and activates them.

    Its container gets it and its emitter, as the services `plugin_manager` and `event_emitter`:
    other services have them injected.

    Args:
        container: where plugins register services; the default container if None.
        events: where it emits events, and where plugins listen. If None, the default emitter with
            the default container, and a new one with any other.
        sections: where plugins register sections of the configuration; if None, the default ones
            with the default container, and new ones with any other.
        strict: raise for a broken plugin instead of listing it; if None, the
            environment variable TRUTHGPT_STRICT=1 decides.

    Threads may share one: what one thread activates, the others wait for, holding the lock
    of the container. So while a plugin is activated or shut down it must not wait for
    another thread that uses plugins, or a service that is not built yet.

    Attributes:
        container: where plugins register services.
        events: the emitter of this manager.
        hooks: the hooks of all active plugins, to be called with keyword arguments.
        factories: the named factories that plugins fill.
        sections: the sections of the configuration, to be given to `ConfigManager.load_config`.
    """

    def __init__(
        self,
        container: ServiceContainer | None = None,
        *,
        events: EventEmitter | None = None,
        sections: ConfigSections | None = None,
        strict: bool | None = None,
    ) -> None:
        is_default = container is None
        self.container = get_container() if container is None else container
        if events is None:
            events = get_event_emitter() if is_default else EventEmitter()
        if sections is None:
            sections = get_config_sections() if is_default else ConfigSections()
        self.events = events
        self.sections = sections
        for name, service in (("plugin_manager", self), ("event_emitter", events)):
            if name not in self.container:
                self.container.register(name, service)
        self.strict = os.environ.get(STRICT) == "1" if strict is None else strict
        self.factories: Mapping[str, DynamicFactory[Any]] = make_factories(takes_open=is_default)
        # The container's: activating a plugin registers services, and making a service may
        # activate plugins. Two locks would be taken in either order, and two threads hang.
        self._lock = self.container.registry.lock
        self._rows: dict[str, PluginRow] = {}
        self._active: dict[str, Transaction] = {}
        self._under_way: set[str] = set()
        self._discovered = False
        self._switches = Switches()
        self._pluggy = pluggy.PluginManager(hookspecs.PROJECT)
        self._pluggy.add_hookspecs(hookspecs)
        self._core = CorePlugin()
        self._pluggy.register(self._core, name=discovery.CORE)
        hook = self._pluggy.hook
        hook.register_services.call_historic(kwargs={"registry": self.container.registry})
        hook.register_components.call_historic(kwargs={"factories": self.factories})
        hook.register_config_sections.call_historic(kwargs={"sections": self.sections})
        hook.register_event_handlers.call_historic(kwargs={"events": self.events})
        self.hooks = cast(hookspecs.Hooks, hook)

    @one_at_a_time
    def rows(self) -> list[PluginRow]:
        """List all plugins that are installed or registered, by name; imports none of them."""
        self._discover()
        return [self._rows[name] for name in sorted(self._rows)]

    @one_at_a_time
    def activate_all(self) -> None:
        """Import and activate every plugin that has nothing against it, dependencies first.

        One that was deactivated or disabled stays so.

        Raises:
            PluginError: in strict mode, for the first broken plugin.
        """
        self._discover()
        for row in self._rows.values():
            if self.strict and row.state is State.BROKEN:
                raise row.as_error()
        for key in order.dependencies_first(self._rows):
            if self._rows[key].state is State.FOUND and not self._waits(key):
                self._activate_or_break(key)

    @one_at_a_time
    def activate(self, name: str) -> None:
        """Activate one plugin and, before it, those that it needs.

        Raises:
            PluginError: there is no plugin of that name, it is disabled, or it is broken.
        """
        row = self._row(name)
        if row.state is State.DISABLED:
            raise PluginError(f'Plugin "{name}" cannot be activated: {row.reason}')
        wanted = order.everything_needed(self._rows, name)
        if self._under_way & wanted:
            raise PluginError(f'Plugin "{name}" cannot be activated: its activation is under way')
        for key in order.dependencies_first(self._rows):
            if key in wanted and self._rows[key].state in (State.FOUND, State.INACTIVE):
                self._activate_or_break(key)
        if row.state is State.BROKEN:
            raise row.as_error()
        if row.state is not State.ACTIVE:
            raise PluginError(f'Plugin "{name}" cannot be activated: {row.reason}')

    @one_at_a_time
    def register_plugin(self, plugin: object, name: str | None = None) -> None:
        """Register a plugin by hand and activate it, after those that it depends on.

        Args:
            plugin: a `Plugin`, or any object or module with hook implementations.
            name: its name; a `Plugin` knows its own.

        Raises:
            PluginError: there is one of that name, it is a class, it is switched off, one
                that it depends on cannot be had, or it fails to initialize.
        """
        if inspect.isclass(plugin) and issubclass(plugin, Plugin):
            raise PluginError(
                f"{plugin.__name__} is a class", hint=f"Register {plugin.__name__}() instead."
            )
        name = name or activation.name_of(plugin)
        self._discover()
        if name in self._rows:
            raise PluginError(f'There is a plugin named "{name}" already')
        row = PluginRow(name)
        try:
            if reason := self._switches.reason(name):
                raise PluginError(reason)
            row.dependencies = activation.dependencies_of(plugin)
            self._activate_with_dependencies(row, lambda: plugin)
        except PluginError as error:
            raise PluginError(f'Plugin "{name}": {error.message}', hint=error.hint) from error
        self._rows[name] = row

    @one_at_a_time
    def load_plugins_from_directory(self, path: str | os.PathLike[str]) -> list[PluginRow]:
        """Load the Python files and packages of a directory as plugins, and activate them.

        A file's plugins are the subclasses of `Plugin` that it defines; if there are
        none, and it has hook implementations, the module is one, with the file's name.
        They are activated by name, each after those that it depends on. Names that
        begin with `_` or `.` are left out. When a directory is loaded again, files with
        an active plugin stay as they are, and broken ones are tried again.

        Files are code, and a user who can write one can run anything: those that everyone
        may write and those whose real path is outside the directory are refused.

        Returns:
            What there is in the directory, by name; a file that is refused or fails is
            a row with a reason.

        Raises:
            PluginError: there is no such directory, or everyone may write into it; in
                strict mode, for the first broken plugin.
        """
        self._discover()
        rows: list[PluginRow] = []
        loaded: list[LoadedFile] = []
        waiting: dict[str, Callable[[], None]] = {}
        try:
            for file in find_files(path):
                rows += self._load_file(file, loaded, waiting)
            self._break_cycles(waiting)
            for key in order.dependencies_first(self._rows):
                if key in waiting:
                    waiting[key]()
        finally:
            for each in loaded:
                each.release()
        return sorted(rows, key=lambda row: row.name)

    @one_at_a_time
    def deactivate(self, name: str, *, cascade: bool = False) -> None:
        """Undo everything that activating the plugin did, newest first.

        One that is installed can be activated again. One that was registered by hand or
        comes from a file is forgotten.

        Args:
            name: an active plugin.
            cascade: deactivate the active plugins that need it too, before it.

        Raises:
            PluginError: it is not active, or others that are need it.
        """
        if name not in self._active:
            hint = did_you_mean(name, self._active)
            raise PluginError(f'No active plugin is named "{name}"', hint=hint)
        if not cascade:
            order.refuse_while_needed(self._rows, {name}, self._active.keys())
        going = order.everything_needing(self._rows, name)
        for key in reversed(order.dependencies_first(self._rows)):
            if key in going and key in self._active:
                self._active[key].rollback()

    @one_at_a_time
    def disable(self, name: str, *, cascade: bool = False) -> None:
        """Switch a plugin off, in this process and all later ones, until it is enabled.

        Args:
            name: a plugin, broken or not, or a distribution that has plugins.
            cascade: as for `deactivate`.

        Raises:
            PluginError: there is none of that name, or active plugins need it; then
                nothing has changed.
            TruthGPTError: it cannot be written down; then nothing has changed.
        """
        self._discover()
        keys = [key for key, row in self._rows.items() if row.goes_by(name)]
        if not keys:
            raise self._unknown(name)
        going = set(keys) & self._active.keys()
        if not cascade:
            order.refuse_while_needed(self._rows, going, self._active.keys())
        switches.disable(name)
        for key in sorted(going):
            if key in self._active:
                self.deactivate(key, cascade=True)
        self._refresh(keys)

    @one_at_a_time
    def enable(self, name: str) -> None:
        """Take back what `disable` did; the plugin is found again, and can be activated.

        One that was deactivated is found again too. Broken ones are tried again.

        Raises:
            PluginError: there is none of that name, and none was disabled.
            TruthGPTError: it cannot be written down; then nothing has changed.
        """
        self._discover()
        keys = [key for key, row in self._rows.items() if row.goes_by(name)]
        if not switches.enable(name) and not keys:
            raise self._unknown(name)
        self._refresh(keys)

    @one_at_a_time
    def make_optimization(self, name: str, options: Mapping[str, Any]) -> Optimization[Any]:
        """Create an optimization by its name or an alias.

        Raises:
            OptimizationError: no active plugin has it (the error says what there
                is and, where that is known, what to install), its code cannot be
                imported, or its options are wrong.
        """
        return self.optimization_class(name)(**options)

    @one_at_a_time
    def optimization_class(self, name: str) -> type[Optimization[Any]]:
        """Import an optimization, by its name or an alias.

        Raises:
            OptimizationError: as for `make_optimization`.
        """
        self.activate_all()
        factory = self.factories["optimization_factory"]
        try:
            kind: type[Optimization[Any]] = factory.get_class(name)
        except TruthGPTError as error:
            rows = self._rows.values()
            raise not_available(name, rows, self.optimization_names(), error) from error
        return kind

    @one_at_a_time
    def optimization_names(self) -> list[str]:
        """The names, without aliases, of the optimizations that active plugins have."""
        self.activate_all()
        return list(self.factories["optimization_factory"].names())

    def _discover(self) -> None:
        if self._discovered:
            return
        self._switches = Switches.read()
        self._rows.update(installed_rows(switches=self._switches))
        self._discovered = True

    def _refresh(self, turned: Collection[str]) -> None:
        """Judge anew, after switches were turned, what is neither active nor deactivated.

        Of those whose own switch was turned, also what is deactivated.
        """
        self._switches = Switches.read()
        kept = set()
        for key, row in list(self._rows.items()):
            if row.distribution is None:
                continue
            inactive = row.state is State.INACTIVE and key not in turned
            if inactive or row.state is State.ACTIVE:
                kept.add((row.distribution.name, row.name))
            else:
                del self._rows[key]
        for row in installed_rows(switches=self._switches).values():
            if row.distribution and (row.distribution.name, row.name) not in kept:
                add_row(self._rows, row)

    def _waits(self, key: str) -> bool:
        """Whether a plugin is being activated, or needs one that is; by this thread, then."""
        return bool(self._under_way and self._under_way & order.everything_needed(self._rows, key))

    def _row(self, name: str) -> PluginRow:
        self._discover()
        if name not in self._rows:
            raise self._unknown(name)
        return self._rows[name]

    def _unknown(self, name: str) -> PluginError:
        hint = did_you_mean(name, self._rows)
        return PluginError(f'There is no plugin named "{name}"', hint=hint)

    def _activate_or_break(self, key: str) -> None:
        row = self._rows[key]
        hindrance = order.hindrance(self._rows, key)
        if hindrance is None:
            try:
                self._activate(row, partial(activation.load, row))
            except PluginError as error:
                self._break(row, error)
        elif hindrance[0] is State.BROKEN:
            self._break(row, PluginError(hindrance[1]))
        else:
            row.state, row.reason = hindrance

    def _break(self, row: PluginRow, error: PluginError) -> None:
        row.state, row.reason = State.BROKEN, str(error)
        logger.debug("Plugin %r is broken", row.name, exc_info=error)
        self.events.emit(PluginFailed(plugin=row.name, version=row.version, reason=row.reason))
        if self.strict:
            raise row.as_error() from error

    def _activate_with_dependencies(self, row: PluginRow, load: Callable[[], object]) -> None:
        for name in row.dependencies:
            if name not in self._rows:
                raise PluginError(
                    f'it depends on plugin "{name}", which is not installed',
                    hint=did_you_mean(name, self._rows),
                )
            if self._rows[name].state is not State.ACTIVE:
                self.activate(name)
        self._activate(row, load)

    def _activate(self, row: PluginRow, load: Callable[[], object]) -> None:
        transaction = Transaction(row.name)
        began = perf_counter()
        self._under_way.add(row.key)
        try:
            # Loading belongs to it: a module may register things when it is imported.
            with PluginCode(activation.as_plugin_error), transaction:
                record_undo(partial(self._withdraw, row))
                self._set_up(row, load())
        finally:
            self._under_way.discard(row.key)
        row.load_seconds = perf_counter() - began
        self._active[row.key] = transaction
        row.state, row.reason = State.ACTIVE, ""
        self.events.emit(PluginActivated(plugin=row.name, version=row.version))

    def _withdraw(self, row: PluginRow) -> None:
        row.hooks = row.load_seconds = None
        if self._active.pop(row.key, None) is None:
            return  # it did not get as far as being active
        row.state = State.INACTIVE
        if row.entry_point is None:
            del self._rows[row.key]
        self.events.emit(PluginDeactivated(plugin=row.name, version=row.version))

    def _load_file(
        self, file: PluginFile, loaded: list[LoadedFile], waiting: dict[str, Callable[[], None]]
    ) -> list[PluginRow]:
        """Run a file, unless one of its plugins is active, and return the rows of its plugins."""
        earlier = {key: row for key, row in self._rows.items() if row.file == file.path}
        if any(row.state is State.ACTIVE for row in earlier.values()):
            return list(earlier.values())
        for key in earlier:
            del self._rows[key]
        row = PluginRow(file.name, file=file.path)
        if reason := self._switches.reason(file.name):
            row.state, row.reason = State.DISABLED, reason
            return [add_row(self._rows, row)]
        try:
            loaded.append(load_file(file))
        except PluginError as error:
            self._break(add_row(self._rows, row), error)
            return [row]
        rows = []
        for name, plugin in loaded[-1].plugins:
            taken = name in self._rows
            rows.append(add_row(self._rows, PluginRow(name, file=file.path)))
            if taken:
                self._break(rows[-1], PluginError(f'there is a plugin named "{name}" already'))
                continue
            if reason := self._switches.reason(name):
                rows[-1].state, rows[-1].reason = State.DISABLED, reason
                continue
            try:
                rows[-1].dependencies = activation.dependencies_of(plugin)
            except PluginError as error:
                self._break(rows[-1], error)
            else:
                use = partial(loaded[-1].use, plugin)
                waiting[name] = partial(self._activate_from_file, rows[-1], use)
        return rows

    def _activate_from_file(self, row: PluginRow, use: Callable[[], object]) -> None:
        try:
            self._activate_with_dependencies(row, use)
        except PluginError as error:
            self._break(row, error)

    def _break_cycles(self, keys: Iterable[str]) -> None:
        for cycle in find_cycles({key: self._rows[key].dependencies for key in keys}):
            names = " -> ".join([*cycle, cycle[0]])
            for key in cycle:
                self._break(self._rows[key], PluginError(f"plugins depend on each other: {names}"))

    def _set_up(self, row: PluginRow, plugin: object) -> None:
        if isinstance(plugin, Plugin):
            needed = order.needs({**self._rows, row.name: row})[row.name]
            activation.check(plugin, row, {self._rows[key].name for key in needed})
            record_undo(partial(activation.shut_down, plugin))
            plugin.initialize(self.container.registry)
        activation.check_hooks(plugin, partial(self._pluggy.parse_hookimpl_opts, plugin))
        # Recorded first: `register` keeps a plugin whose historic hooks raised.
        record_undo(partial(self._unregister, row.name, plugin))
        self._pluggy.register(plugin, name=row.name)
        self._put_core_last()
        callers = self._pluggy.get_hookcallers(plugin) or ()
        row.hooks = tuple(sorted(caller.name for caller in callers))
        if row.distribution is not None:
            factory = self.factories["optimization_factory"]
            activation.register_optimizations(factory, row.distribution)

    def _put_core_last(self) -> None:
        # Of two implementations with `trylast`, the one registered later is called last.
        self._pluggy.unregister(self._core)
        self._pluggy.register(self._core, name=discovery.CORE)

    def _unregister(self, name: str, plugin: object) -> None:
        # Refused, it may be there all the same, under the name that it had before.
        if self._pluggy.get_plugin(name) is plugin:
            self._pluggy.unregister(plugin)


_default: PluginManager | None = None


def get_plugin_manager() -> PluginManager:
    """Return the process's plugin manager, which uses the default container."""
    global _default
    if _default is None:
        with get_container().registry.lock:
            if _default is None:
                made = PluginManager()
                for factory in made.factories.values():
                    publish_factory(factory)
                _default = made
    return _default
