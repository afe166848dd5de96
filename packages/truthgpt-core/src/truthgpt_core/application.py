"""`Application`: all that one program keeps. Two of them in one process share nothing."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from truthgpt_core.config import ConfigSections
from truthgpt_core.dynamic_factory import DynamicFactory
from truthgpt_core.event_system import EventEmitter
from truthgpt_core.plugin_system import PluginManager, get_plugin_manager
from truthgpt_core.service_registry import ServiceContainer


class Application:
    """The services, events, factories, configuration sections and plugins of one program.

        application = Application()
        inference = application.get_service("inference_service")

    Args:
        plugins: the plugin manager, which brings the rest with it; a new one, with a container
            and an emitter of its own, if None.
        strict: raise for a broken plugin instead of listing it; for a new plugin manager, which
            reads the environment variable TRUTHGPT_STRICT if this is None.

    Attributes:
        plugins: finds plugins and activates them.
    """

    def __init__(self, plugins: PluginManager | None = None, *, strict: bool | None = None) -> None:
        self.plugins = plugins or PluginManager(ServiceContainer(), strict=strict)

    @property
    def container(self) -> ServiceContainer:
        """Builds the services."""
        return self.plugins.container

    @property
    def events(self) -> EventEmitter:
        """Tells handlers of events."""
        return self.plugins.events

    @property
    def factories(self) -> Mapping[str, DynamicFactory[Any]]:
        """The named factories that plugins fill."""
        return self.plugins.factories

    @property
    def sections(self) -> ConfigSections:
        """The sections that configurations may have."""
        return self.plugins.sections

    def get_service(self, name: str) -> Any:
        """Return a service by name, after activating the installed plugins, which bring them.

        Args:
            name: such as `inference_service`.

        Raises:
            ServiceError: there is none of that name, or it cannot be built.
            PluginError: in strict mode, for the first broken plugin.
        """
        self.plugins.activate_all()
        return self.container.get(name)


_default: Application | None = None
_lock = threading.Lock()


def get_application() -> Application:
    """Return the default application.

    It is what the functions of modules act on: `get_service`, `emit_event`, `get_factory`,
    `get_plugin_manager`. A process that was started for another one has a default of its own.
    """
    global _default
    with _lock:
        if _default is None:
            _default = Application(get_plugin_manager())
    return _default
