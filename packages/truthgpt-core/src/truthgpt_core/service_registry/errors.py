"""What can go wrong with services: every error that the registry and the container raise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from truthgpt_core.errors import TruthGPTError


class ServiceError(TruthGPTError):
    """Base class of every error about services."""


class InvalidServiceError(ServiceError):
    """What was offered under a name cannot be a service, or the name cannot be a name."""


class DuplicateServiceError(ServiceError):
    """The name is taken, and `replace=True` was not given."""


class UnknownServiceError(ServiceError):
    """No service is registered under the name."""


class MissingDependencyError(ServiceError):
    """A service needs something that no registered service provides."""


class AmbiguousDependencyError(ServiceError):
    """A service needs a class that several registered services provide."""


class ServiceCycleError(ServiceError):
    """Services need one another in a circle.

    Attributes:
        path: the names along the circle; the last one is the first again.
    """

    def __init__(
        self,
        path: Sequence[str],
        *,
        while_building: bool = False,
        owners: Mapping[str, str | None] | None = None,
    ) -> None:
        self.path = tuple(path)
        said = "got one another while they were being built" if while_building else "form a cycle"
        of = [f'{name} is of plugin "{owner}"' for name, owner in (owners or {}).items() if owner]
        owned = f" ({', '.join(of)})" if of else ""
        super().__init__(
            f"Services {said}: {' -> '.join(self.path)}{owned}",
            hint="Annotate one of the parameters as Provider[...] and call it after construction.",
        )


class LifetimeError(ServiceError):
    """A scoped service is needed where no scope is, or by something that outlives the scope."""


class ServiceClosedError(ServiceError):
    """The container or the scope was closed before the call."""


class ServiceCloseError(ServiceError):
    """Closing some services failed; all the others were closed nevertheless.

    Attributes:
        errors: what each of the failing services raised, by its name, in closing order.
    """

    def __init__(self, errors: Sequence[tuple[str, Exception]]) -> None:
        self.errors: Mapping[str, Exception] = dict(errors)
        failures = "; ".join(f'"{name}": {type(error).__name__}: {error}' for name, error in errors)
        super().__init__(f"Closing services failed ({failures})")
