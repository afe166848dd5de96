"""Shows a report in a terminal, at whatever width it has, and in a pipe."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from truthgpt_services.formatting import (
    ARROW,
    DASH,
    ELLIPSIS,
    INFINITY,
    PLUS_MINUS,
    TIMES,
    visible,
)
from truthgpt_services.report import noise, quantities, steps
from truthgpt_services.report.quantities import Cell, Row
from truthgpt_services.results.io import HTML_NAME
from truthgpt_services.results.schema import Outcome, Report, Step

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_STYLES = {
    Outcome.ACCEPTED: "green",
    Outcome.REJECTED: "yellow",
    Outcome.UNDECIDED: "yellow",
    Outcome.NOT_APPLIED: "dim",
    Outcome.FAILED: "red",
}
_PLAIN = str.maketrans(
    {
        TIMES: "x",
        DASH: "-",
        PLUS_MINUS: "+/-",
        INFINITY: "inf",
        ELLIPSIS: "...",
        ARROW: "->",
        "\N{EM DASH}": "-",
    }
)
_GAP = 2
_NAMES_SHOWN = 3


def print_short_report(report: Report, directory: Path, console: Console) -> None:
    """Print what a run came to in few lines: at 80 columns, two steps take at most ten.

    Args:
        report: of the run.
        directory: where it was written.
        console: where to.
    """
    printer = _Printer(report, console)
    printer.print_headline()
    for step in report.steps:
        printer.print_gist(step)
    print_next(report, directory, console, more=" (--full prints all of it here)")


def print_next(report: Report, directory: Path, console: Console, *, more: str = "") -> None:
    """Print where a run left its report, and what to type next.

    Args:
        report: of the run.
        directory: where it was written.
        console: where to.
        more: text after the name of the report.
    """
    command = shlex.join(["truthgpt", "generate", str(directory), report.sample_prompt])
    lines = [f"Report: {directory / HTML_NAME}{more}"]
    if not quantities.alarm(report):
        lines.append(f"Next:   {command}")
    for line in lines:
        # Never broken by us, so that it can be copied.
        console.print(encodable(line, console), soft_wrap=True)


def print_report(report: Report, console: Console) -> None:
    """Print the result, the steps with their reasons, and the table of what was measured.

    Figures are never cut. If the variants do not fit beside each other, intervals
    move to lines of their own; if that is not enough, the table is continued below.
    """
    printer = _Printer(report, console)
    printer.print_result()
    printer.print_steps()
    printer.print_tables()
    printer.print_sections()


def print_sections(report: Report, console: Console) -> None:
    """Print what plugins added to a report."""
    _Printer(report, console).print_sections()


class _Printer:
    """Draws one report on one console."""

    def __init__(self, report: Report, console: Console) -> None:
        self.report = report
        self.console = console

    def print_headline(self) -> None:
        self._line(self.report.result.summary, "bold")
        if alarm := quantities.alarm(self.report):
            self._line(alarm, "bold red")
        for warning in noise.warnings(self.report):
            self._line(f"Warning: {warning}", "bold yellow")

    def print_gist(self, step: Step) -> None:
        """Print one line about a step, cut where the console ends."""
        line = self._text(f"{_one_line(step.name)}: ", "bold")
        line.append_text(self._text(steps.outcome(step), f"bold {_style(step)}"))
        reason = f" ({_one_line(steps.gist(self.report, step))})"
        cut = self._text(f"{ELLIPSIS})").plain
        line.append_text(self._text(reason))
        if line.cell_len > self.console.width:
            line.truncate(self.console.width - len(cut))
            line.append(cut)
        self.console.print(line, no_wrap=True)

    def print_result(self) -> None:
        report, machine = self.report, self.report.machine
        self.print_headline()
        self._line(
            f"{report.source.spec} as {report.source.dtype} on {machine.device} ({machine.cpu}), "
            f"engine {noise.engines(report)}, {noise.turns(report)}",
            "dim",
        )
        if report.load is not None:
            self._line(f"Other programs, CPU cores: {noise.load_line(report.load)}", "dim")
        if recorded := noise.replay_line(report):
            self._line(f"Recorded for replay: {recorded}", "dim")

    def print_steps(self) -> None:
        from rich.table import Table

        if not self.report.steps:
            return
        self.console.print()
        grid = Table.grid(padding=(0, _GAP, 0, 0))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for step in self.report.steps:
            outcome = self._text(steps.outcome(step), f"bold {_style(step)}")
            grid.add_row(outcome, self._step(step))
        self.console.print(grid)

    def print_tables(self) -> None:
        rows = [row for group in quantities.groups(self.report) for row in group.rows]
        stacked, chunks = self._layout(rows)
        for chunk in chunks:
            self.console.print()
            self.console.print(self._table(chunk, stacked=stacked))
        gate = self.report.settings.gate
        self.console.print()
        self._line(
            f"{TIMES}: ratio to the baseline; of speeds with an interval "
            f"({noise.interval_line(self.report)}); {PLUS_MINUS}: standard error. KL in nats per "
            f"token. Bounds: "
            + "; ".join(
                f"{name[0].lower()}{name[1:]} {value}" for name, value in quantities.bounds(gate)
            )
            + ".",
            "dim",
        )
        self._line(quantities.source_note(self.report), "dim")

    def print_sections(self) -> None:
        """Print what plugins added."""
        from rich.table import Table

        for section in self.report.sections:
            self.console.print()
            self._line(section.title, "bold")
            if section.text:
                self._line(section.text)
            grid = Table.grid(padding=(0, _GAP, 0, 0))
            grid.add_column(overflow="fold")
            grid.add_column(overflow="fold")
            for label, text in section.rows:
                grid.add_row(self._text(label), self._text(text))
            if section.rows:
                self.console.print(grid)

    def _step(self, step: Step) -> Text:
        text = self._text(step.name, "bold")
        text.append_text(self._text(f"  {step.distribution}\n", "dim"))
        text.append_text(self._text(step.reason))
        ratios = steps.judged(self.report, step)
        if ratios:
            judged = ", ".join(f"{name} {_ratio(cell)}" for name, cell in ratios)
            text.append_text(self._text(f"\nagainst {step.against}: {judged}"))
        if step.costs:
            text.append_text(self._text(f"\ncost: {'; '.join(step.costs)}", "yellow"))
        for line in self._details(step):
            text.append_text(self._text(f"\n{line}", "dim"))
        return text

    def _details(self, step: Step) -> list[str]:
        lines = []
        if covered := steps.covered(step):
            lines.append(f"{covered} covered")
        for reason, names in steps.skipped_by_reason(step):
            listed = ", ".join(names[:_NAMES_SHOWN])
            more = f", and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            lines.append(f"{len(names)} left alone, {reason}: {listed}{more}")
        if step.options:
            options = step.options.items()
            lines.append("options: " + "; ".join(f"{k}={steps.option_text(v)}" for k, v in options))
        lines.extend(f"note: {note}" for note in step.notes)
        if even := steps.breaks_even(self.report, step):
            lines.append(f"break-even {even}")
        if took := steps.took(self.report, step):
            lines.append(f"took {took}")
        return lines

    def _layout(self, rows: Sequence[Row]) -> tuple[bool, list[list[int]]]:
        """Choose which variants stand beside each other, and whether intervals go below."""
        count = len(self.report.variants)
        for stacked in (False, True):
            widths = [self._width(rows, column, stacked=stacked) for column in range(count)]
            room = self.console.width - self._label_width(rows)
            if sum(width + _GAP for width in widths) <= room:
                return stacked, [list(range(count))]
        chunks: list[list[int]] = [[0]]
        for column in range(1, count):
            used = sum(widths[other] + _GAP for other in chunks[-1])
            if used + widths[column] + _GAP <= room:
                chunks[-1].append(column)
            elif widths[0] + widths[column] + 2 * _GAP <= room:
                chunks.append([0, column])
            else:
                chunks.append([column])
        if len(chunks) > 1 and chunks[0] == [0] and chunks[1][0] == 0:
            del chunks[0]
        return True, chunks

    def _width(self, rows: Sequence[Row], column: int, *, stacked: bool) -> int:
        from rich.cells import cell_len

        lines = [line for row in rows for line in _lines(row.cells[column], stacked=stacked)]
        words = self._header(column).plain.split()
        return max(
            *(cell_len(line) for line in lines), *(min(cell_len(word), 18) for word in words), 1
        )

    def _label_width(self, rows: Sequence[Row]) -> int:
        return max(len(line) for row in rows for line in _label(row).splitlines())

    def _table(self, chunk: Sequence[int], *, stacked: bool) -> Table:
        from rich import box
        from rich.table import Table

        table = Table(
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, _GAP - 1, 0, 0),
            header_style="bold",
        )
        groups = quantities.groups(self.report)
        rows = [row for group in groups for row in group.rows]
        table.add_column("", overflow="fold", min_width=min(self._label_width(rows), 20))
        for column in chunk:
            width = self._width(rows, column, stacked=stacked)
            table.add_column(
                self._header(column), justify="right", overflow="fold", max_width=width
            )
        for group in groups:
            table.add_row(self._text(group.name, "bold"))
            for row in group.rows:
                cells = [_lines(row.cells[column], stacked=stacked) for column in chunk]
                table.add_row(
                    self._text(_label(row)), *(self._text("\n".join(lines)) for lines in cells)
                )
            if group is not groups[-1]:
                table.add_row()
        return table

    def _header(self, column: int) -> Text:
        variant = self.report.variants[column]
        became = steps.variant_outcome(self.report, variant)
        return self._text(f"{variant.name}\n({became})" if became else variant.name)

    def _line(self, text: str, style: str = "") -> None:
        self.console.print(self._text(text, style))

    def _text(self, text: str, style: str = "") -> Text:
        return encodable(text, self.console, style)


def encodable(text: str, console: Console, style: str = "") -> Text:
    """Return text that is shown as it is: never markup, and in the console's encoding."""
    from rich.text import Text

    text, encoding = visible(text), console.encoding
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_PLAIN).encode(encoding, "backslashreplace").decode(encoding)
    return Text(text, style=style)


def _style(step: Step) -> str:
    return "yellow" if step.costs else _STYLES[step.outcome]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _label(row: Row) -> str:
    label = f"{row.name}, {row.unit}" if row.unit and not row.unit_is_noted else row.name
    return label if row.against == quantities.BASELINE else f"{label}\n({TIMES} source file)"


def _ratio(cell: Cell) -> str:
    ends = f" ({cell.ratio_interval})" if cell.ratio_interval else ""
    remark = f" {cell.remark}" if cell.remark else ""
    return f"{cell.ratio}{ends}{remark}".strip()


def _lines(cell: Cell, *, stacked: bool) -> list[str]:
    """Return the lines of a cell; stacked, its intervals have lines of their own."""
    between = "\n" if stacked else " "
    figure = f"{cell.figure}{between}({cell.interval})" if cell.interval else cell.figure
    against = f"{cell.ratio}{between}({cell.ratio_interval})" if cell.ratio_interval else cell.ratio
    remark = cell.remark.replace(" of ", "\nof ") if stacked else cell.remark
    return [line for part in (figure, against, remark) if part for line in part.splitlines()]
