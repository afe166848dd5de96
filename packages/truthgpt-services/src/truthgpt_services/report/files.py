"""Leaves a report in a directory, as `report.json` and as a page, `report.html`."""

from __future__ import annotations

import os
from pathlib import Path

from truthgpt_services.report.html import render_html
from truthgpt_services.results.io import HTML_NAME, JSON_NAME, report_json, write_text
from truthgpt_services.results.schema import Report


def write_report(report: Report, directory: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write `report.json`, then `report.html`; a reader never sees half of either.

    The measurements come first: they are on disk before the page is drawn.

    Returns:
        The paths of both files.

    Raises:
        ReportError: a file cannot be written.
    """
    folder = Path(directory)
    json_path, html_path = folder / JSON_NAME, folder / HTML_NAME
    write_text(json_path, report_json(report))
    write_text(html_path, render_html(report))
    return json_path, html_path
