"""`truthgpt compare`: two reports side by side."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Put two reports side by side.")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, and nothing else.")
def compare(a: Path, b: Path, as_json: bool) -> None:
    """Put report B beside report A; each ratio is B / A.

    A and B are files as `truthgpt optimize` and `truthgpt eval --json` write them, or
    directories with a report.json. What keeps them from being comparable comes first.

    \b
      truthgpt compare build/monday build/tuesday
    """  # noqa: D301 - click wants the character, not its escape
    from truthgpt_services.report.compare import compare_reports
    from truthgpt_services.results.io import json_text, read_report

    comparison = compare_reports(read_report(a), read_report(b))
    if as_json:
        click.echo(json_text({"a": str(a), "b": str(b), **comparison.as_data()}), nl=False)
        return
    from rich.console import Console

    from truthgpt_services.report.tables import print_comparison

    print_comparison(comparison, str(a), str(b), Console())
