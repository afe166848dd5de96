"""A criterion and a report section as a third party would publish them: a budget of memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from truthgpt_core import hookimpl
from truthgpt_core.evaluation import Measured, ReportSection

BUDGET = float(os.environ.get("FRUGAL_MB", "inf"))


@hookimpl
def judge_step(candidate: Measured) -> str | None:
    megabytes = candidate.quantities["weights_bytes"] / 1e6
    if megabytes > BUDGET:
        return f"It takes {megabytes:.2f} MB, and the budget is {BUDGET:g}."
    return None


@hookimpl
def report_sections(report: Mapping[str, Any]) -> Iterable[ReportSection]:
    sizes = [
        (variant["name"], f"{variant['measured']['weights_bytes'] / 1e6:.2f} MB")
        for variant in report["variants"]
    ]
    yield ReportSection("Budget of memory", sizes, f"At most {BUDGET:g} MB are allowed.")
