"""Progress on the terminal: one bar that is gone when the work is done, or lines in a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from truthgpt_core.optimization import Progress as Callback
from truthgpt_core.terminal_text import harmless
from truthgpt_services.optimizing.schedule import phase_of

if TYPE_CHECKING:
    from rich.spinner import Spinner
    from rich.table import Table


@contextmanager
def display_progress() -> Iterator[Callback]:
    """Show progress on standard error.

    On a terminal: one line with what is done now, for how long, and how far it is, which is how
    far the whole job is where that is known (`optimizing.schedule.Overall`). Elsewhere: one line
    for each phase, with the seconds that it took.
    """
    if not sys.stderr.isatty():
        lines = _Lines()
        try:
            yield lines
        finally:
            lines.end()
        return
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner

    bar = _Bar(Spinner("dots"))
    with Live(
        get_renderable=bar.line,
        console=Console(stderr=True),
        refresh_per_second=8,
        transient=True,
    ):
        yield bar


class _Bar:
    """The state of the line that is drawn."""

    def __init__(self, spinner: Spinner) -> None:
        self._spinner = spinner
        self._what = self._phase = ""
        self._began = self._reported_at = time.monotonic()
        # Of the phase, as long as that of the whole is not known; None: unknown.
        self._share: float | None = None
        self._left: float | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        if phase_of(what) != self._phase:
            self._phase = phase_of(what)
            self._began = time.monotonic()
        self._what = what
        if self._left is None:
            self._share = done / total if total > 0 else None

    def overall(self, share: float, seconds_left: float) -> None:
        self._share, self._left = share, seconds_left
        self._reported_at = time.monotonic()

    def line(self) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        now = time.monotonic()
        share, left = self._share, ""
        if self._left is not None and share is not None:
            # Time goes on between two reports, and the bar with it.
            still = max(0.0, self._left - (now - self._reported_at))
            share = 1.0 - (1.0 - share) * (still / self._left if self._left > 0 else 1.0)
            left = f"about {_duration(still)} left"
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column()
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for _ in range(4):
            table.add_column(no_wrap=True, justify="right")
        table.add_row(
            self._spinner,
            Text(harmless(self._what), end=""),
            _duration(now - self._began),
            ProgressBar(total=None if share is None else 1.0, completed=share or 0.0, width=20),
            "" if share is None else f"{share:4.0%}",
            left,
        )
        return table


class _Lines:
    """A line for each phase: what it is when it begins, and how long it took when it ends."""

    def __init__(self) -> None:
        self._phase = ""
        self._began = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        if phase_of(what) == self._phase:
            return
        self.end()
        self._phase = phase_of(what)
        self._began = time.monotonic()
        click.echo(f"{harmless(self._phase)} ...", err=True, nl=False)

    def end(self) -> None:
        if self._phase:
            click.echo(f" {_duration(time.monotonic() - self._began)}", err=True)
            self._phase = ""


def _duration(seconds: float) -> str:
    """Write whole seconds, and minutes and hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
