"""Errors of optimizations, and naming the author of one: distribution, file and line.

Whatever an optimization's own code raises reaches the user as one line that says whose it is
and where it happened, instead of as a traceback through our code.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from truthgpt_core.errors import DEBUG, TruthGPTError, in_one_line

_GROUP = "truthgpt.optimizations"
_HINT = f"{DEBUG}=1 shows the traceback."


class OptimizationError(TruthGPTError):
    """An optimization was asked for something it cannot do."""


@contextmanager
def naming_the_author(kind: type[Any], method: str) -> Iterator[None]:
    """Turn what the code of an optimization raises into an error that names it.

    Errors of ours and a `KeyboardInterrupt` pass as they are. All else does not, a `SystemExit`
    included: an optimization does not end the program.

    Args:
        kind: the class of the optimization.
        method: the name of the method that is called.

    Raises:
        OptimizationError: with the plugin's distribution, and the file and line of the innermost
            call in the plugin's own package, or of the innermost one if there is none.
    """
    try:
        yield
    except (TruthGPTError, KeyboardInterrupt):
        raise
    except BaseException as error:
        where = _where(error.__traceback__, _package(kind))
        raise OptimizationError(
            f"{described(kind)} failed in {method}{where}: {in_one_line(error)}", hint=_HINT
        ) from error


def author_error(
    kind: type[Any], method: str, problem: str, hint: str | None = None
) -> OptimizationError:
    """Return the error for a result that an optimization must not have.

    Args:
        kind: the class of the optimization.
        method: the name of the method that gave it.
        problem: what it did, as the rest of a sentence that begins with the method.
        hint: what its author has to do about it.
    """
    return OptimizationError(
        f"{described(kind)}: {method} {problem}{_definition(kind, method)}", hint=hint
    )


def described(kind: type[Any]) -> str:
    """Return an optimization's name and where it comes from: `"NAME" (DISTRIBUTION VERSION)`."""
    name = str(getattr(kind, "name", kind.__name__))
    return f'"{name}" ({distribution_of(kind) or f"{kind.__module__}.{kind.__qualname__}"})'


def distribution_of(kind: type[Any]) -> str:
    """Return the distribution of an optimization as "NAME VERSION"; empty if it has none."""
    from importlib.metadata import entry_points  # only a mistake waits for it

    for entry_point in entry_points(group=_GROUP, name=str(getattr(kind, "name", ""))):
        if entry_point.module.partition(".")[0] == _package(kind) and entry_point.dist:
            return f"{entry_point.dist.name} {entry_point.dist.version}"
    return ""


def _package(kind: type[Any]) -> str:
    return kind.__module__.partition(".")[0]


def _where(traceback: TracebackType | None, package: str) -> str:
    innermost = own = ""
    while traceback is not None:
        frame = traceback.tb_frame
        innermost = f" at {frame.f_code.co_filename}:{traceback.tb_lineno}"
        if str(frame.f_globals.get("__name__")).partition(".")[0] == package:
            own = innermost
        traceback = traceback.tb_next
    return own or innermost


def _definition(kind: type[Any], method: str) -> str:
    code = getattr(inspect.unwrap(getattr(kind, method)), "__code__", None)
    return f", at {code.co_filename}:{code.co_firstlineno}" if code is not None else ""
