"""Methods that only one thread at a time is in."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar


class Lockable(Protocol):
    """An object with a lock of its own, which a thread may take again while it has it."""

    _lock: Any


_P = ParamSpec("_P")
_R = TypeVar("_R")
_L = TypeVar("_L", bound=Lockable)


def one_at_a_time(method: Callable[Concatenate[_L, _P], _R]) -> Callable[Concatenate[_L, _P], _R]:
    """Hold the lock of the object while the method runs."""

    @wraps(method)
    def locked(self: _L, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with self._lock:
            return method(self, *args, **kwargs)

    return locked
