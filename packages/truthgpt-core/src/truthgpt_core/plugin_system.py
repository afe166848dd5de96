"""Plugins: discover, judge, order, activate.

`discovery` does the first two without importing anything. Here plugins are put in
order of their dependencies and activated one by one, each in a transaction, so
that one which fails leaves nothing behind and becomes a row with a reason.
"""

from __future__ import annotations

import enum
import inspect
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import EntryPoint
from typing import Any, cast

import pluggy

from truthgpt_core import catalogue, discovery, hookspecs
from truthgpt_core.discovery import ALIASES, OPTIMIZATIONS, PLUGINS, Installed
from truthgpt_core.dynamic_factory import DynamicFactory, publish_factory
from truthgpt_core.errors import TruthGPTError, did_you_mean
from truthgpt_core.event_system import EventType, emit_event
from truthgpt_core.optimization import (
    Applied,
    Model,
    Optimization,
    OptimizationContext,
    OptimizationError,
)
from truthgpt_core.service_registry import ServiceContainer, ServiceRegistry, get_container
from truthgpt_core.transaction import Transaction, record_undo

logger = logging.getLogger(__name__)

STRICT = "TRUTHGPT_STRICT"


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
    BROKEN = "broken"


@dataclass
class PluginRow:
    """A plugin and what is known of it.

    Attributes:
        name: the plugin's name.
        state: what has become of it.
        reason: why it is broken; empty if it is not.
        distribution: the distribution it comes from; None if it was registered by hand.
    """

    name: str
    state: State = State.FOUND
    reason: str = ""
    distribution: Installed | None = None
    entry_point: EntryPoint | None = field(default=None, repr=False)

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
        self._active: dict[str, tuple[Any, Transaction]] = {}
        self._discovered = False
        self._pluggy = pluggy.PluginManager(hookspecs.PROJECT)
        self._pluggy.add_hookspecs(hookspecs)
        self._pluggy.register(_Core(), name="truthgpt-core")
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

        Raises:
            PluginError: in strict mode, for the first broken plugin.
        """
        self._discover()
        for row in self._rows.values():
            if self.strict and row.state is State.BROKEN:
                raise PluginError(f'Plugin "{row.name}" is broken: {row.reason}')
        for name in _dependencies_first(self._rows.values()):
            if self._rows[name].state is State.FOUND:
                self._activate_or_break(self._rows[name])

    def register_plugin(self, plugin: object, name: str | None = None) -> None:
        """Register a plugin by hand and activate it.

        Args:
            plugin: a `Plugin`, or any object or module with hook implementations.
            name: its name; a `Plugin` knows its own.

        Raises:
            PluginError: there is one of that name, or it fails to initialize.
        """
        name = name or (plugin.name if isinstance(plugin, Plugin) else _name_of(plugin))
        self._discover()
        if name in self._rows:
            raise PluginError(f'There is a plugin named "{name}" already')
        row = PluginRow(name)
        self._activate(row, plugin)
        self._rows[name] = row

    def deactivate(self, name: str) -> None:
        """Undo everything that activating the plugin did, newest first.

        Raises:
            PluginError: it is not active.
        """
        if name not in self._active:
            hint = did_you_mean(name, self._active)
            raise PluginError(f'No active plugin is named "{name}"', hint=hint)
        _, transaction = self._active.pop(name)
        transaction.rollback()
        self._rows[name].state = State.FOUND

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
                why = row.reason or str(cause)
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
        installed = discovery.discover()
        reasons = discovery.judge(installed)
        for distribution in installed:
            reason = reasons.get(distribution.name, "")
            entry_points = distribution.entry_points.get(PLUGINS, {})
            for name, entry_point in entry_points.items():
                state = State.BROKEN if reason else State.FOUND
                row = PluginRow(name, state, reason, distribution, entry_point)
                self._rows[name if name not in self._rows else f"{name} ({distribution.name})"] = (
                    row
                )
            if reason and not entry_points:
                row = PluginRow(distribution.name, State.BROKEN, reason, distribution)
                self._rows[distribution.name] = row

    def _activate_or_break(self, row: PluginRow) -> None:
        try:
            self._activate(row, _load(row))
        except PluginError as error:
            row.state, row.reason = State.BROKEN, str(error)
            logger.debug("Plugin %r is broken", row.name, exc_info=True)
            emit_event(EventType.PLUGIN_FAILED, {"plugin": row.name, "reason": row.reason})
            if self.strict:
                raise

    def _activate(self, row: PluginRow, plugin: object) -> None:
        transaction = Transaction()
        try:
            with transaction:
                self._set_up(row, plugin)
        except TruthGPTError as error:
            raise PluginError(f'Plugin "{row.name}": {error.message}', hint=error.hint) from error
        except (Exception, SystemExit) as error:
            raise PluginError(
                f'Plugin "{row.name}" failed to initialize: {type(error).__name__}: {error}'
            ) from error
        self._active[row.name] = (plugin, transaction)
        row.state, row.reason = State.ACTIVE, ""
        emit_event(EventType.PLUGIN_ACTIVATED, {"plugin": row.name})

    def _set_up(self, row: PluginRow, plugin: object) -> None:
        if isinstance(plugin, Plugin):
            if row.entry_point is not None and plugin.name != row.name:
                raise PluginError(f'it calls itself "{plugin.name}", and its metadata does not')
            record_undo(plugin.shutdown)
            plugin.initialize(self.container.registry)
        # Recorded first: `register` keeps a plugin whose historic hooks raised.
        record_undo(partial(self._unregister, plugin))
        self._pluggy.register(plugin, name=row.name)
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

    def _unregister(self, plugin: object) -> None:
        if self._pluggy.is_registered(plugin):
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


def _load(row: PluginRow) -> object:
    assert row.entry_point is not None
    try:
        loaded = row.entry_point.load()
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{row.entry_point.value} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if inspect.isclass(loaded):
        try:
            return loaded()
        except (Exception, SystemExit) as error:
            raise PluginError(f"{row.entry_point.value}() raised {error!r}") from error
    return loaded


def _load_optimization(name: str, entry_point: EntryPoint) -> type[Optimization[Any]]:
    loaded = entry_point.load()
    if not (inspect.isclass(loaded) and issubclass(loaded, Optimization)):
        raise PluginError(f"{entry_point.value} is no subclass of Optimization")
    if loaded.name != name:
        raise PluginError(f'{entry_point.value} calls itself "{loaded.name}", not "{name}"')
    return loaded


def _dependencies_first(rows: Iterable[PluginRow]) -> list[str]:
    from graphlib import CycleError, TopologicalSorter

    by_distribution: dict[str, list[str]] = {}
    everything = list(rows)
    for row in everything:
        if row.distribution is not None:
            key = discovery.normalized(row.distribution.name)
            by_distribution.setdefault(key, []).append(row.name)
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for row in sorted(everything, key=lambda row: row.name):
        sorter.add(row.name)
        for required in sorted(row.distribution.requires if row.distribution else ()):
            for name in by_distribution.get(required, ()):
                if name != row.name:
                    sorter.add(row.name, name)
    try:
        return list(sorter.static_order())
    except CycleError as error:
        raise PluginError(f"Plugins require each other: {' -> '.join(error.args[1])}") from None


def _hook_names() -> frozenset[str]:
    return frozenset(
        name for name in vars(hookspecs) if hasattr(getattr(hookspecs, name), "truthgpt_spec")
    )


def _name_of(plugin: object) -> str:
    return getattr(plugin, "__name__", None) or type(plugin).__name__
