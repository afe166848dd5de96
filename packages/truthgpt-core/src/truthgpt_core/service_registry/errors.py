"""The errors of the service registry and the service container."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from truthgpt_core.errors import TruthGPTError


class ServiceError(TruthGPTError):
    """Base class of every error about services."""


class InvalidServiceError(ServiceError):
    """The name or the object cannot be registered as a service."""


class DuplicateServiceError(ServiceError):
    """The name is taken, and `replace=True` was not given."""


class UnknownServiceError(ServiceError):
    """No service is registered under the name."""


class MissingDependencyError(ServiceError):
    """A parameter without a default matches no registered service."""


class AmbiguousDependencyError(ServiceError):
    """Several registered services are of the class that a parameter is annotated with."""


class ServiceCycleError(ServiceError):
    """Services need each other in a cycle.

    Args:
        path: the names along the cycle; the last one is the first again.
        plugins: by service name, the plugin that registered it, or None.
    """

    def __init__(self, path: Sequence[str], plugins: Mapping[str, str | None]) -> None:
        self.path = tuple(path)
        owned = [f'{name} is of plugin "{plugins[name]}"' for name in path[:-1] if plugins[name]]
        super().__init__(
            f"Services need each other in a cycle: {' -> '.join(path)}"
            + (f" ({', '.join(owned)})" if owned else ""),
            hint="Let one of them get the other from the container when it first uses it, "
            "not in its constructor.",
        )


class ServiceClosedError(ServiceError):
    """The container is closed."""


class ServiceCloseError(ServiceError):
    """Closing some services failed; all the others were closed nevertheless.

    Args:
        errors: what each of them raised, by service name, in the order of closing.
    """

    def __init__(self, errors: Mapping[str, Exception]) -> None:
        self.errors = errors
        failed = "; ".join(
            f'"{name}": {type(error).__name__}: {error}' for name, error in errors.items()
        )
        super().__init__(f"Closing services failed ({failed})")
