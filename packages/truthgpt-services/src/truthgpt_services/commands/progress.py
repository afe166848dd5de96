"""Progress on the terminal: a bar for work that can be counted, the time for work that cannot."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from truthgpt_core.columns import harmless
from truthgpt_core.optimization import Progress as Callback


@contextmanager
def shown_progress() -> Iterator[Callback]:
    """Show progress on standard error: bars on a terminal, else a line for each piece of work."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task: TaskID | None = None
        last = ""

        def show(what: str, done: int, total: int) -> None:
            nonlocal task, last
            what = harmless(what)
            if task is None or what != last:
                finish()
                task = bars.add_task(escape(what), total=None)
                last = what
            bars.update(task, completed=done, total=total or None)

        def finish() -> None:
            if task is not None:
                bars.update(task, total=1, completed=1)

        yield show
        finish()


def _lines() -> Callback:
    last = ""

    def show(what: str, done: int, total: int) -> None:
        nonlocal last
        what = harmless(what)
        if what != last:
            last = what
            click.echo(f"{what} ...", err=True)

    return show
