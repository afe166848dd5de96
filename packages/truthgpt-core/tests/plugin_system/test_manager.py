"""Plugins are activated in order, each whole or not at all, and undone in reverse."""

from __future__ import annotations

import types
from typing import Any

import pytest

from truthgpt_core import (
    Plugin,
    PluginManager,
    get_plugin_manager,
    hookimpl,
)
from truthgpt_core.event_system import EventType, on_event
from truthgpt_core.plugin_system import PluginError, State
from truthgpt_core.service_registry import ServiceContainer, get_container

CORE = "truthgpt-core>=0.1,<0.2"


class Named(Plugin):
    """A plugin that writes down what becomes of it."""

    def __init__(self, name: str, told: list[str] | None = None) -> None:
        self._name = name
        self.told: list[str] = [] if told is None else told

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return "1.0"

    def initialize(self, registry) -> None:
        self.told.append(f"{self._name} on")
        registry.register(f"{self._name}_service", lambda: self._name)

    def shutdown(self) -> None:
        self.told.append(f"{self._name} off")


def states(manager: PluginManager) -> dict[str, State]:
    return {row.name: row.state for row in manager.rows()}


# By hand


def test_a_registered_plugin_is_active(manager) -> None:
    """`register_plugin` registers and activates: its services are there at once."""
    manager.register_plugin(Named("mine"))
    assert states(manager)["mine"] is State.ACTIVE
    assert manager.container.get("mine_service") == "mine"


def test_any_object_with_hooks_is_a_plugin(manager) -> None:
    """A plugin need be no `Plugin`: an object or a module with hook implementations will do."""

    class Things:
        @hookimpl
        def register_services(self, registry) -> None:
            registry.register("from_object", lambda: 1)

    module = types.ModuleType("some_module")
    module.register_services = hookimpl(  # type: ignore[attr-defined]
        lambda registry: registry.register("from_module", lambda: 2)
    )
    manager.register_plugin(Things())
    manager.register_plugin(module)
    assert manager.container.get("from_object") == 1
    assert manager.container.get("from_module") == 2
    assert {"Things", "some_module"} <= states(manager).keys()


def test_a_plugins_methods_may_be_hooks(manager) -> None:
    """A `Plugin` subclass implements hooks as methods, after it was initialized."""

    class Both(Named):
        @hookimpl
        def register_services(self, registry) -> None:
            self.told.append(f"hook, {'both_service' in registry.names()}")

    plugin = Both("both")
    manager.register_plugin(plugin)
    assert plugin.told == ["both on", "hook, True"]


def test_a_second_plugin_of_a_name_is_refused(manager) -> None:
    """The name of a plugin is taken until it is deactivated."""
    manager.register_plugin(Named("mine"))
    second = Named("mine")
    with pytest.raises(PluginError, match='There is a plugin named "mine" already'):
        manager.register_plugin(second)
    assert second.told == []


def test_the_name_of_an_installed_plugin_is_taken(site, manager) -> None:
    """A plugin by hand cannot take the place of one that is installed."""
    site.install_plugin("there")
    with pytest.raises(PluginError, match="already"):
        manager.register_plugin(Named("there"))


def test_one_object_is_one_plugin(manager) -> None:
    """The same object under a second name is refused, and its first registration stays."""

    class Hooked:
        @hookimpl
        def make_decode_step(self, model, cache):
            return "step"

    hooked = Hooked()
    manager.register_plugin(hooked, name="first")
    with pytest.raises(PluginError, match="second"):
        manager.register_plugin(hooked, name="second")
    assert manager.hooks.make_decode_step(model=None, cache=None) == "step"
    assert "second" not in states(manager)


def test_a_plugin_that_fails_by_hand_is_an_error_and_no_row(manager) -> None:
    """What fails to initialize by hand raises with the plugin's name and is forgotten."""

    class Failing(Named):
        def initialize(self, registry) -> None:
            super().initialize(registry)
            raise ValueError("two\nlines")

    plugin = Failing("failing")
    with pytest.raises(PluginError) as raised:
        manager.register_plugin(plugin)
    assert str(raised.value) == 'Plugin "failing": it failed to initialize: ValueError: two lines'
    assert isinstance(raised.value.__cause__, PluginError)
    assert "failing" not in states(manager)
    assert "failing_service" not in manager.container.registry.names()
    assert plugin.told == ["failing on", "failing off"]


def test_a_class_is_no_plugin_yet(manager) -> None:
    """Registering the class and not an object of it says what to write."""
    with pytest.raises(PluginError, match=r"Named is a class. Register Named\(\)"):
        manager.register_plugin(Named)


@pytest.mark.parametrize("missing", ["name", "version"])
def test_a_plugin_has_to_say_what_it_is(missing: str) -> None:
    """A `Plugin` subclass without name or version says so when it is asked."""

    class Nameless(Plugin):
        pass

    with pytest.raises(PluginError, match=f"Nameless does not say its {missing}"):
        getattr(Nameless(), missing)


# Undoing


def test_deactivating_undoes_in_reverse(manager) -> None:
    """Everything that a plugin registered goes, newest first, its shutdown last of all."""
    order: list[str] = []

    class Layered(Named):
        def initialize(self, registry) -> None:
            super().initialize(registry)
            registry.register("base", lambda: "base")

        def shutdown(self) -> None:
            order.append(f"shutdown, base is left: {'base' in manager.container}")

        @hookimpl
        def register_components(self, factories) -> None:
            factories["optimizer_factory"].register("rows", dict)

        @hookimpl
        def make_decode_step(self, model, cache):
            return "step"

    manager.register_plugin(Layered("layered"))
    assert "rows" in manager.factories["optimizer_factory"]
    manager.deactivate("layered")
    assert order == ["shutdown, base is left: False"]
    assert "rows" not in manager.factories["optimizer_factory"]
    assert manager.hooks.make_decode_step(model=None, cache=None) is None


def test_event_handlers_go_with_their_plugin(manager) -> None:
    """A handler that a plugin subscribed hears nothing after the plugin was deactivated."""
    heard: list[Any] = []

    class Listening(Named):
        def initialize(self, registry) -> None:
            on_event(EventType("test.ping"), heard.append)

    from truthgpt_core.event_system import emit_event

    manager.register_plugin(Listening("listening"))
    emit_event(EventType("test.ping"))
    manager.deactivate("listening")
    emit_event(EventType("test.ping"))
    assert len(heard) == 1


def test_a_deactivated_plugin_by_hand_can_be_registered_again(manager) -> None:
    """Deactivating forgets a plugin by hand, so that its name is free."""
    manager.register_plugin(Named("mine"))
    manager.deactivate("mine")
    assert "mine" not in states(manager)
    manager.activate_all()
    manager.register_plugin(Named("mine"))
    assert states(manager)["mine"] is State.ACTIVE


def test_only_active_plugins_can_be_deactivated(manager) -> None:
    """Deactivating what is not active suggests what is."""
    manager.register_plugin(Named("quantizer"))
    with pytest.raises(PluginError, match=r'"quantiser". Did you mean "quantizer"'):
        manager.deactivate("quantiser")


def test_a_plugin_within_a_plugin_goes_with_it(manager) -> None:
    """What a plugin registers while it is initialized is undone with it, plugins too."""

    class Outer(Named):
        def initialize(self, registry) -> None:
            manager.register_plugin(Named("inner"))

    manager.register_plugin(Outer("outer"))
    assert states(manager)["inner"] is State.ACTIVE
    manager.deactivate("outer")
    assert not {"inner", "outer"} & states(manager).keys()
    assert "inner_service" not in manager.container.registry.names()


# Installed ones


def test_an_installed_module_is_activated(site, manager) -> None:
    """`activate_all` imports a module and calls its hooks."""
    site.install_plugin(
        "modular",
        """
        from truthgpt_core import hookimpl

        @hookimpl
        def register_services(registry):
            registry.register("modular_service", lambda: {})
        """,
    )
    manager.activate_all()
    assert states(manager)["modular"] is State.ACTIVE
    assert manager.container.get("modular_service") == {}


@pytest.mark.parametrize("names", ["abc", "bca", "cab"])
def test_requirements_are_activated_first(site, manager, names: str) -> None:
    """A plugin is activated after those that its distribution requires, whatever their names."""
    chain = [f"{name}_plugin" for name in names]
    for name, required in zip(chain, [None, *chain], strict=False):
        site.install_plugin(
            name,
            "from truthgpt_core.paths import __dict__ as board\n"
            f"board.setdefault('order', []).append('{name}')",
            requires=(CORE, f"{required}.dist") if required else (CORE,),
        )
    from truthgpt_core import paths

    try:
        manager.activate_all()
        order = [name for name in vars(paths)["order"] if name in chain]
    finally:
        vars(paths).pop("order", None)
    assert order == chain


def test_activating_one_activates_what_it_requires(site, manager) -> None:
    """`activate` takes its requirements with it and leaves the others."""
    site.install_plugin("base")
    site.install_plugin("upper", requires=(CORE, "base-dist"))
    site.install_plugin("apart")
    manager.activate("upper")
    found = states(manager)
    assert (found["base"], found["upper"], found["apart"]) == (
        State.ACTIVE,
        State.ACTIVE,
        State.FOUND,
    )


def test_activating_what_is_not_there_suggests(site, manager) -> None:
    """`activate` with a wrong name suggests the right one."""
    site.install_plugin("sparsify")
    with pytest.raises(PluginError, match=r'"sparsity". Did you mean "sparsify"'):
        manager.activate("sparsity")


def test_activating_a_broken_one_raises_its_reason(site, manager) -> None:
    """`activate` raises what keeps the plugin from working."""
    site.install_plugin("wrong", "1 / 0")
    with pytest.raises(PluginError, match=r'"wrong" is broken: .*ZeroDivisionError'):
        manager.activate("wrong")


def test_a_deactivated_plugin_stays_so_until_it_is_activated(site, manager) -> None:
    """Work that activates all plugins does not bring back what was switched off."""
    site.install_plugin("switched")
    manager.activate_all()
    manager.deactivate("switched")
    manager.activate_all()
    assert states(manager)["switched"] is State.INACTIVE
    manager.activate("switched")
    assert states(manager)["switched"] is State.ACTIVE


def test_plugins_tell_of_themselves(site, manager) -> None:
    """Activation, deactivation and failure are events."""
    site.install_plugin("well")
    site.install_plugin("ill", "raise OSError('no')")
    told: list[tuple[str, str]] = []

    def listen(event) -> None:
        if event.data["plugin"] in ("well", "ill"):
            told.append((str(event.type), event.data["plugin"]))

    kinds = (EventType.PLUGIN_ACTIVATED, EventType.PLUGIN_FAILED, EventType.PLUGIN_DEACTIVATED)
    for kind in kinds:
        manager.events.on(kind, listen)
    manager.activate_all()
    manager.deactivate("well")
    assert told == [
        ("plugin_failed", "ill"),
        ("plugin_activated", "well"),
        ("plugin_deactivated", "well"),
    ]


# Strict


def test_strict_raises_for_a_broken_plugin(site) -> None:
    """In strict mode, the first plugin that fails is an error that names it."""
    site.install_plugin("wrong", "1 / 0")
    manager = PluginManager(ServiceContainer(), strict=True)
    with pytest.raises(PluginError, match=r'Plugin "wrong" is broken: .*ZeroDivisionError'):
        manager.activate_all()


def test_strict_raises_for_a_plugin_that_was_judged(site) -> None:
    """In strict mode, a plugin for another core is an error before anything is imported."""
    site.install_plugin("early", "1 / 0", requires=("truthgpt-core>=99",))
    manager = PluginManager(ServiceContainer(), strict=True)
    with pytest.raises(PluginError, match='Plugin "early" is broken: it was written for'):
        manager.activate_all()


@pytest.mark.parametrize(("value", "strict"), [("1", True), ("0", False), ("", False)])
def test_the_environment_makes_it_strict(monkeypatch, value: str, strict: bool) -> None:
    """TRUTHGPT_STRICT=1 is strict, unless the program says otherwise."""
    monkeypatch.setenv("TRUTHGPT_STRICT", value)
    assert PluginManager(ServiceContainer()).strict is strict
    assert PluginManager(ServiceContainer(), strict=False).strict is False


# The process's own


def test_the_process_has_one_manager() -> None:
    """`get_plugin_manager` returns one manager, on the default container."""
    assert get_plugin_manager() is get_plugin_manager()
    assert get_plugin_manager().container is get_container()
