"""The errors of this package, all of them `TruthGPTError`s."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from truthgpt_core.errors import DEBUG, TruthGPTError, UsageError, in_one_line, meant_or_known

if TYPE_CHECKING:
    from truthgpt_core.dynamic_factory import DynamicFactory


class ModelError(TruthGPTError):
    """A model cannot be found, read or saved."""


class DeviceError(ModelError):
    """There is no such device on this machine."""

    exit_code = 2


class DataError(TruthGPTError):
    """A data set cannot be found, read or used."""


class OutputError(TruthGPTError):
    """An output directory cannot be written."""


class DamagedError(TruthGPTError):
    """A file is missing, or is not what was written."""


class WorkerError(TruthGPTError):
    """A worker process failed or went away.

    Args:
        message: what happened.
        worker: its name.
        hint: what to do about it.
    """

    def __init__(self, message: str, *, worker: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.worker = worker


def refuse_unknown_component(kind: str, name: str, factory: DynamicFactory[Any]) -> None:
    """Refuse a name that a factory has no component of.

    Args:
        kind: what its components are called.
        name: what the user typed.
        factory: where they are registered.

    Raises:
        UsageError: there is none of that name; it says which there are.
    """
    if name in factory:
        return
    names = factory.names()
    have = f"Available: {', '.join(names)}." if names else "None is installed."
    raise UsageError(
        f'There is no {kind} named "{name:.100}"', hint=meant_or_known(name, names, have)
    )


@contextmanager
def naming_the_plugin(component: object, what: str) -> Iterator[None]:
    """Turn what the code of a component raises into an error that says whose it is.

    Errors of ours and a `KeyboardInterrupt` pass as they are.

    Args:
        component: an object with a `name`, from a factory that plugins fill.
        what: what kind of component it is.

    Raises:
        ModelError: anything else was raised.
    """
    try:
        yield
    except (TruthGPTError, KeyboardInterrupt):
        raise
    except (Exception, SystemExit) as error:
        name = getattr(component, "name", "")
        raise ModelError(
            f'The {what} "{name}" ({origin_of(component)}) failed: {in_one_line(error)}',
            hint=f"{DEBUG}=1 shows the traceback.",
        ) from error


def origin_of(component: object) -> str:
    """Return where the class of a component is defined."""
    return f"{type(component).__module__}.{type(component).__qualname__}"
