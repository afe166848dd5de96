"""An application keeps all that is its own, and nothing of another."""

from __future__ import annotations

import pytest

from truthgpt_core.application import Application, get_application
from truthgpt_core.config import Section
from truthgpt_core.config.sections import config_model
from truthgpt_core.dynamic_factory import get_factory
from truthgpt_core.event_system import EventType, get_event_emitter, on_event
from truthgpt_core.hookspecs import hookimpl
from truthgpt_core.plugin_system import PluginManager, get_plugin_manager
from truthgpt_core.service_registry import UnknownServiceError, get_container


class Shop:
    """Registers one thing of each kind, and notes the events that it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    @hookimpl
    def register_services(self, registry):
        registry.register("shop", self)

    @hookimpl
    def register_components(self, factories):
        factories["optimizer_factory"].register("goods", dict)

    @hookimpl
    def register_event_handlers(self, events):
        events.on(EventType.CHECKPOINT_SAVED, lambda event: self.heard.append(event.data["path"]))


@pytest.fixture
def two() -> tuple[Application, Application]:
    return Application(), Application()


def test_services_of_one_are_not_in_another(two) -> None:
    """What a plugin registers is a service of the application that it is active in."""
    one, other = two
    shop = Shop()
    one.plugins.register_plugin(shop, name="shop")
    assert one.container.get("shop") is shop
    with pytest.raises(UnknownServiceError):
        other.container.get("shop")
    with pytest.raises(UnknownServiceError):
        get_container().get("shop")


def test_components_of_one_are_not_in_another(two) -> None:
    """A factory has the components that plugins of its application registered."""
    one, other = two
    one.plugins.register_plugin(Shop(), name="shop")
    assert "goods" in one.factories["optimizer_factory"].names()
    assert "goods" not in other.factories["optimizer_factory"].names()
    assert "goods" not in get_application().factories["optimizer_factory"].names()


def test_events_of_one_are_not_heard_in_another(two) -> None:
    """A handler hears the events of its application alone."""
    one, other = two
    shops = Shop(), Shop()
    for application, shop in zip(two, shops, strict=True):
        application.plugins.register_plugin(shop, name="shop")
    default: list[object] = []
    subscription = on_event(EventType.CHECKPOINT_SAVED, default.append)
    one.events.emit(EventType.CHECKPOINT_SAVED, {"path": "tea"})
    other.events.emit(EventType.CHECKPOINT_SAVED, {"path": "salt"})
    subscription.remove()
    assert [shop.heard for shop in shops] == [["tea"], ["salt"]]
    assert default == []


def test_what_becomes_of_plugins_is_told_in_their_application(two) -> None:
    """Activating a plugin in one application emits nothing in another."""
    one, other = two
    heard: list[str] = []
    other.events.on(EventType.PLUGIN_ACTIVATED, lambda event: heard.append("other"))
    one.events.on(EventType.PLUGIN_ACTIVATED, lambda event: heard.append("one"))
    one.plugins.register_plugin(Shop(), name="shop")
    assert heard == ["one"]


def test_sections_of_one_are_not_in_another(two) -> None:
    """A configuration may have the sections that plugins of its application registered."""
    one, other = two

    class Budget(Section):
        hours: float = 1.0

    class Registering:
        @hookimpl
        def register_config_sections(self, sections):
            sections.register("budget", Budget)

    one.plugins.register_plugin(Registering(), name="ours")
    assert "budget" in config_model(one.sections).model_fields
    assert "budget" not in config_model(other.sections).model_fields
    assert "budget" not in config_model(get_application().sections).model_fields


def test_services_get_the_plugins_and_events_of_their_application(two) -> None:
    """A constructor that names or annotates them has them injected."""

    class Service:
        def __init__(self, plugins: PluginManager | None = None, event_emitter=None) -> None:
            self.plugins, self.events = plugins, event_emitter

    for application in two:
        application.container.register("service", Service)
        made = application.container.get("service")
        assert made.plugins is application.plugins
        assert made.events is application.events


def test_the_default_one_is_what_module_functions_act_on() -> None:
    """`get_container`, `get_event_emitter` and the others give parts of one application."""
    default = get_application()
    assert default is get_application()
    assert default.container is get_container()
    assert default.events is get_event_emitter()
    assert default.plugins is get_plugin_manager()
    assert default.factories["dataset_factory"] is get_factory("dataset_factory")
