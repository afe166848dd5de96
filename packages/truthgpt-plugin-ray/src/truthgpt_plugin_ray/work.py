"""What is made in each process of a cluster, and how errors come back from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import Any

from truthgpt_core.errors import TruthGPTError, in_one_line


class Made:
    """What a factory made in this process, or why it made nothing.

    An error is kept and not raised: Ray would make the process again and again.

    Args:
        factory: as `"module:attribute"`.
        settings: what it is called with.

    Attributes:
        value: what it returned; None if it failed.
        error: `error` and `hint`, if it failed; else None.
    """

    def __init__(self, factory: str, settings: Mapping[str, Any]) -> None:
        self.value: Any = None
        self.error: dict[str, Any] | None = None
        try:
            make: Callable[[Mapping[str, Any]], Any] = resolve_name(factory)
            self.value = make(settings)
        except TruthGPTError as error:
            self.error = as_json(error)
        except Exception as error:  # noqa: BLE001 - handed to the one who asked for it
            self.error = as_json(TruthGPTError(f"{factory} failed: {in_one_line(error)}"))


def as_json(error: TruthGPTError) -> dict[str, Any]:
    """Return an error as data: `error` is what it says, and `hint` what to do about it."""
    return {"error": error.message, "hint": error.hint}
