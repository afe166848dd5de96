"""Sections that plugins add to a report."""

from __future__ import annotations

import logging

from truthgpt_core.errors import in_one_line
from truthgpt_core.evaluation import ReportSection
from truthgpt_core.hookspecs import Hooks
from truthgpt_services.results.schema import Report, Section

logger = logging.getLogger(__name__)


def with_sections(report: Report, hooks: Hooks) -> Report:
    """Return a report with the sections of all plugins.

    What took minutes to measure is not lost to a section that fails: it is left out, with a
    warning.
    """
    try:
        found = [
            section
            for sections in hooks.report_sections(report=report.model_dump(mode="json"))
            for section in sections
        ]
        made = [_checked(section) for section in found]
    except (Exception, SystemExit) as error:  # noqa: BLE001 - of a plugin
        logger.warning("Sections of plugins are left out of the report: %s", in_one_line(error))
        return report
    return report.model_copy(update={"sections": made})


def _checked(section: object) -> Section:
    if not isinstance(section, ReportSection):
        raise TypeError(f"a {type(section).__name__} is not a ReportSection")
    rows = [(str(label), str(text)) for label, text in section.rows]
    return Section(title=str(section.title), text=str(section.text), rows=rows)
