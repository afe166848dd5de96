"""Shows one model's figures, or two reports side by side, in a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from truthgpt_services.formatting import (
    ABSENT,
    interval,
    number,
    ratio,
    seconds,
    share,
    size,
)
from truthgpt_services.report import noise, quantities
from truthgpt_services.report.compare import Comparison, Figure
from truthgpt_services.report.terminal import encodable, print_sections
from truthgpt_services.results.schema import Report

if TYPE_CHECKING:
    from rich.console import Console

_AGAINST_BASELINE = ("KL mean", "KL 99.9th percentile", "Top-1 agreement", "Flips")


def print_evaluation(report: Report, console: Console) -> None:
    """Print what was measured of a model alone: figures, and what it writes."""
    source, machine = report.source, report.machine
    where = f"{machine.device} ({machine.cpu}), engine {noise.engines(report)}"
    _line(console, f"{source.spec} as {source.dtype} on {where}", "bold")
    _line(
        console,
        f"{source.architecture}, {source.parameters:,} parameters; "
        f"{noise.turns(report)}, medians with {report.settings.confidence * 100:g} % "
        f"intervals; {report.text.tokens:,} tokens of {report.text.name}",
        "dim",
    )
    for group in quantities.groups(report):
        # Of one model there is nothing to be far from.
        rows = [
            (f"{row.name}, {row.unit}" if row.unit else row.name, cell.figure, cell.interval)
            for row, cell in ((row, row.cells[0]) for row in group.rows)
            if row.name not in _AGAINST_BASELINE and cell.figure != ABSENT
        ]
        if rows:
            _table(console, (group.name, "", ""), rows)
    print_sections(report, console)
    console.print()
    _line(console, f"{report.sample_prompt}{report.variants[0].measured.sample}")


def print_comparison(comparison: Comparison, a: str, b: str, console: Console) -> None:
    """Print what keeps two reports from being compared, then how they differ, then the figures.

    Args:
        comparison: of the two.
        a: the name of the first.
        b: the name of the second.
        console: where to.
    """
    _line(console, f"A is {a}")
    _line(console, f"B is {b}")
    if comparison.warnings:
        console.print()
    for warning in comparison.warnings:
        _line(console, f"Not comparable: {warning}", "bold yellow")
    if comparison.differences:
        _table(
            console,
            ("What differs", "A", "B"),
            [(each.what, each.a, each.b) for each in comparison.differences],
        )
    for name, figures in comparison.variants:
        _table(
            console,
            (name, "A", "B", "B / A"),
            [
                (_label(each), _value(each, each.a), _value(each, each.b), _ratio(each))
                for each in figures
            ],
        )
    for side, names in (("A", comparison.only_a), ("B", comparison.only_b)):
        if names:
            console.print()
            _line(console, f"Only in {side}: {', '.join(names)}")


def _label(figure: Figure) -> str:
    return f"{figure.name}, {figure.unit}" if figure.unit == "tok/s" else figure.name


def _value(figure: Figure, value: float | None) -> str:
    if value is None:
        return ABSENT
    write = {"bytes": size, "s": seconds, "share": share}.get(figure.unit, number)
    return write(value)


def _ratio(figure: Figure) -> str:
    if figure.ratio is None:
        return ABSENT
    if figure.low is None or figure.high is None:
        return ratio(figure.ratio)
    return f"{ratio(figure.ratio)} ({interval(figure.low, figure.high, 2)})"


def _table(console: Console, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for position, title in enumerate(header):
        table.add_column(
            encodable(title, console), overflow="fold", justify="right" if position else "left"
        )
    for row in rows:
        table.add_row(*(encodable(cell, console) for cell in row))
    console.print()
    console.print(table)


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(encodable(text, console, style))
