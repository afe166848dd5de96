"""What the command `truthgpt` writes to a terminal does nothing to it but be read.

Names come from files, from metadata and from the command line, and may have control
characters in them. These are written as escapes, in help, errors, logs and warnings
here; tables do it in `columns`, and other commands through `say`.
"""

from __future__ import annotations

import io
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import click

from truthgpt_core.terminal_text import visible


def say(text: str, *, err: bool = False) -> None:
    """Print a line, or several, with control characters as escapes.

    Args:
        text: what to print; its line breaks and tabs stay.
        err: whether to print it to standard error.
    """
    click.echo(visible(text), err=err)


def say_click_error(error: click.ClickException) -> None:
    """Print an error of click's, as click does: with the usage and a hint."""
    text = io.StringIO()
    error.show(file=text)
    click.echo(visible(text.getvalue()), nl=False, err=True)


class HelpFormatter(click.HelpFormatter):
    """Writes help, with control characters as escapes."""

    def write(self, string: str) -> None:
        """Add a part of the help."""
        super().write(visible(string))


class Context(click.Context):
    """A context whose help does nothing to a terminal."""

    formatter_class = HelpFormatter


class _LogFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


@contextmanager
def safe_diagnostics() -> Iterator[None]:
    """Let logs, warnings and tracebacks write control characters as escapes, in a block.

    Logs are those that no handler takes, which Python writes to standard error.
    """
    format_warning, log_formatter = warnings.formatwarning, _LogFormatter()

    def format_visibly(*args: Any, **kwargs: Any) -> str:
        return visible(format_warning(*args, **kwargs))

    handler = logging.lastResort
    before = handler.formatter if handler is not None else None
    if handler is not None:
        handler.setFormatter(log_formatter)
    setattr(warnings, "formatwarning", format_visibly)  # noqa: B010 - mypy refuses the other way
    sys.excepthook = _print_traceback
    try:
        yield
    finally:
        # What ends the process is printed after this block.
        if handler is not None and not sys.is_finalizing():
            handler.setFormatter(before)
        setattr(warnings, "formatwarning", format_warning)  # noqa: B010


def _print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    sys.stderr.write(visible("".join(traceback.format_exception(kind, error, trace))))
