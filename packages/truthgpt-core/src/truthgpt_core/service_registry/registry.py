"""What can be built: the services that are registered, by name."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from truthgpt_core.errors import did_you_mean
from truthgpt_core.service_registry.errors import (
    DuplicateServiceError,
    ServiceError,
    UnknownServiceError,
)
from truthgpt_core.service_registry.wiring import (
    Registration,
    ServiceInfo,
    Wiring,
    read_registration,
)
from truthgpt_core.transaction import record_undo

OnChange = Callable[[str, Wiring], Callable[[], None]]
"""How a container is told of a change: the name and the new wiring.

It returns what closes the services that are out of date, to be called without the lock.
"""


class ServiceRegistry:
    """The services that can be built, by name. It builds nothing: a `ServiceContainer` does.

    It may change at any time, also while services are in use. Inside a `Transaction`, a
    registration is undone with the transaction, and what it replaced is in force again.

    Attributes:
        lock: guards what is registered and what is being built, as one.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._wiring = Wiring({})
        # Plugins are deactivated in any order, so each name has all registrations that can come
        # back into force, the newest last.
        self._stacks: dict[str, list[Registration]] = {}
        self._on_change: OnChange | None = None

    def register(
        self, name: str, service: Any, singleton: bool = True, *, replace: bool = False
    ) -> None:
        """Let `name` stand for `service`.

        A class or a function is called to build the service. Each of its parameters gets the
        service with the name of the parameter; failing that, the one service whose class, or
        whose function's return annotation, is the class that the parameter is annotated with;
        failing that, it keeps its default. Builtin types such as `str` match nothing.

        To register the same object with the same lifetime again is not an error. It is there
        until both registrations are undone.

        Args:
            name: a nonempty string.
            service: a class, a function, or an instance, which is anything else.
            singleton: whether one instance is shared; if not, every `get` builds a new one.
            replace: whether to replace the service of that name. It is closed, and so is every
                service that needs it; these are built anew when they are needed.

        Raises:
            InvalidServiceError: if `service` can never be built, or an argument is invalid.
            DuplicateServiceError: if `name` is taken and `replace` is False.
            UnknownServiceError: if `name` is not taken and `replace` is True.
            ServiceCloseError: if closing what was built on the replaced service fails; the
                new registration is in force nevertheless.
        """
        registration = read_registration(name, service, singleton)
        with self.lock:
            present = self._wiring.registrations.get(name)
            if present and not replace and not registration.same_as(present):
                raise DuplicateServiceError(
                    f"Service {present.quoted} is registered already, as {present.source!r}",
                    hint="Give replace=True to replace it.",
                )
            if not present and replace:
                hint = did_you_mean(name, self.names()) or "Leave out replace=True."
                if registration.plugin:
                    hint += (
                        " If another plugin registers it, require the distribution of that one, "
                        "so that it is activated first."
                    )
                raise UnknownServiceError(
                    f'There is no service "{name}" to replace, and replace=True was given',
                    hint=hint,
                )
            beneath = self._stacks.get(name, [])
            if not record_undo(partial(self._undo, registration)):
                beneath = []  # it is there for good, so nothing beneath it comes back
            finish = self._change(name, [*beneath, registration])
        finish()

    def names(self) -> tuple[str, ...]:
        """Return the names of all services, sorted."""
        return tuple(sorted(self._wiring.registrations))

    def __contains__(self, name: object) -> bool:
        return name in self._wiring.registrations

    def validate(self) -> None:
        """Check that all services can be built, as the first `get` does.

        Raises:
            MissingDependencyError: if a parameter without a default matches no service.
            AmbiguousDependencyError: if several services match a parameter.
            ServiceCycleError: if services need each other in a cycle.
        """
        with self.lock:
            self._wiring.judge()

    def graph(self) -> str:
        """Return who needs whom as a Mermaid flowchart; the graph need not be valid.

        Singletons are rectangles, transient services stadiums.
        """
        with self.lock:
            return self._wiring.mermaid()

    def describe(self) -> tuple[ServiceInfo, ...]:
        """Return what every service needs, by name; the graph need not be valid."""
        with self.lock:
            return self._wiring.describe()

    def _attach(self, on_change: OnChange) -> None:
        with self.lock:
            if self._on_change is not None:
                raise ServiceError("The registry belongs to another container already")
            self._on_change = on_change

    def _undo(self, registration: Registration) -> None:
        with self.lock:
            stack = self._stacks[registration.name]
            if registration not in stack:
                return  # replaced for good
            beneath = [one for one in stack if one is not registration]
            finish = self._change(registration.name, beneath)
        finish()

    def _change(self, name: str, stack: list[Registration]) -> Callable[[], None]:
        """Put `stack` in force; return what closes the services that are out of date."""
        registrations = {**self._wiring.registrations}
        before = registrations.pop(name, None)
        if stack:
            registrations[name] = stack[-1]
        wiring = Wiring(registrations)
        finish = _nothing
        if self._on_change and not (stack and stack[-1].same_as(before)):
            finish = self._on_change(name, wiring)
        self._stacks[name] = stack
        self._wiring = wiring
        return finish


def _nothing() -> None:
    pass
