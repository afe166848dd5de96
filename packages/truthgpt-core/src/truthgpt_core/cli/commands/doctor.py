"""`truthgpt doctor`."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from truthgpt_core.diagnosis import Status

if TYPE_CHECKING:
    from truthgpt_core.doctor.findings import Finding

_COLOURS = {Status.OK: "green", Status.WARNING: "yellow", Status.FAILED: "red"}
_STATUS_WIDTH = max(len(status) for status in Status)
_SECONDS = 60.0  # importing torch from a slow disk takes half of it
_WIDEST = 100
_WIDEST_SUBJECT = 24


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list of all findings.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A training configuration to check too.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="How long importing torch, or activating all plugins, may take.",
)
@click.pass_context
def doctor(ctx: click.Context, as_json: bool, config: Path | None, timeout: float) -> None:
    """Say what works on this machine and what does not, and how to mend it.

    Nothing is changed. Exits with 1 if anything has failed; a warning is about what is
    slow, or missing and perhaps not wanted.
    """
    from truthgpt_core.doctor.examination import examine

    seen: list[Finding] = []
    # Closed at once, whatever happens: processes may be running for it.
    with closing(examine(config, timeout)) as findings:
        for area, group in groupby(findings, key=lambda finding: finding.area):
            found = list(group)
            if not as_json:
                _print_area(area, found, first=not seen)
            seen += found
    if as_json:
        click.echo(json.dumps([finding.as_json() for finding in seen], indent=2))
    else:
        _say("")
        _say(_summary(seen))
    if any(finding.status is Status.FAILED for finding in seen):
        ctx.exit(1)


def _print_area(area: str, findings: Iterable[Finding], *, first: bool) -> None:
    if not first:
        _say("")
    _say(area)
    found = list(findings)
    subjects = min(max(len(finding.subject) for finding in found), _WIDEST_SUBJECT)
    indent = " " * (2 + _STATUS_WIDTH + 2 + subjects + 2)
    width = max(min(shutil.get_terminal_size().columns, _WIDEST), len(indent) + 30)
    for finding in found:
        lines = _wrapped(finding.detail, width - len(indent))
        if finding.status is not Status.OK and finding.fix:
            lines += _wrapped(f"fix: {finding.fix}", width - len(indent))
        head = f"{finding.subject:{subjects}}"
        if len(finding.subject) > subjects:
            lines = ["", *lines]
        status = click.style(f"{finding.status:{_STATUS_WIDTH}}", fg=_COLOURS[finding.status])
        _say(f"  {status}  {head}  {lines[0]}".rstrip())
        for line in lines[1:]:
            _say(f"{indent}{line}")


def _wrapped(text: str, width: int) -> list[str]:
    # Paths and commands are copied: they stay whole.
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return lines or [""]


def _summary(findings: Iterable[Finding]) -> str:
    count = Counter(finding.status for finding in findings)
    warnings = f"{count[Status.WARNING]} warning{'s' if count[Status.WARNING] != 1 else ''}"
    return f"{count[Status.FAILED]} failed, {warnings}, {count[Status.OK]} ok."


def _say(line: str) -> None:
    # Names of devices and what plugins say need not fit the encoding of a terminal.
    encoding = sys.stdout.encoding or "ascii"
    click.echo(line.encode(encoding, "backslashreplace").decode(encoding))
