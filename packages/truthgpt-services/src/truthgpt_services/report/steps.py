"""What a report says about each step, in words; the page and the terminal say the same."""

from __future__ import annotations

from collections import Counter
from typing import Any

from truthgpt_services.formatting import seconds
from truthgpt_services.report import noise
from truthgpt_services.report.quantities import NOT_CLOSELY, Cell, find_variant, over, ratio_cell
from truthgpt_services.results.schema import Outcome, Report, Step, Variant

AT_A_COST = ", at a cost"
SHOWN_ITEMS = 8
"""Of an option that is a list; report.json has them all."""


def variant_outcome(report: Report, variant: Variant) -> str:
    """Say in a word or two what became of a variant; empty if nothing did."""
    if variant.name == report.result.variant:
        return "result"
    outcomes = [outcome(step) for step in report.steps if step.variant == variant.name]
    return outcomes[-1] if outcomes else ""


def took(report: Report, step: Step) -> str:
    """Say how long a step took, and how long its first use did; empty if it was not applied."""
    if not step.seconds:
        return ""
    variant = find_variant(report, step.variant)
    first = f", then {seconds(variant.measured.warmup_seconds)} of first use" if variant else ""
    return f"{seconds(step.seconds)}{first}"


def outcome(step: Step) -> str:
    """Say in a few words what became of a step."""
    anyway = " anyway" if step.overruled else ""
    return f"{step.outcome.value}{anyway}{AT_A_COST if step.costs and is_accepted(step) else ''}"


def is_accepted(step: Step) -> bool:
    """Whether the step is part of the result."""
    return step.outcome is Outcome.ACCEPTED


def breaks_even(report: Report, step: Step) -> str:
    """Say when a step has gained the time that it costs at first; empty if it was not measured."""
    measured = step.decode_ratio
    if step.break_even is None or (measured and not noise.is_close(report, measured)):
        return ""
    even = step.break_even
    if even.tokens is None:
        return "never: it does not decode faster beyond noise"
    if even.tokens == 0:
        return "at once: it costs no time at first"
    ends = ""
    if even.fewest is not None and even.most is not None:
        ends = f" ({even.fewest:,} to {even.most:,})"
    return (
        f"after {even.tokens:,} decoded tokens{ends}: {seconds(even.extra_seconds)} more at first"
    )


def judged(report: Report, step: Step) -> list[tuple[str, Cell]]:
    """Return what a step was judged on, each as the ratio to the variant it was judged against."""
    found = [
        (name, ratio_cell("", "", measured, closely=noise.is_close(report, measured)))
        for name, measured in (("decode", step.decode_ratio), ("prefill", step.prefill_ratio))
        if measured is not None
    ]
    after, before = find_variant(report, step.variant), find_variant(report, step.against)
    if after and before:
        weights = over(after.measured.weights_bytes, before.measured.weights_bytes)
        found.append(("weights in memory", Cell("", ratio=weights)))
        now, then = (each.measured.cache_bytes_per_token for each in (after, before))
        if now and then and now != then:
            found.append(("keys and values in memory", Cell("", ratio=over(now, then))))
    return found


def gist(report: Report, step: Step) -> str:
    """Say in a few words why a step became what it did."""
    ratios = judged(report, step)
    if is_accepted(step) and not step.overruled and ratios:
        if any(cell.remark == NOT_CLOSELY for _, cell in ratios):
            known = [each for each in ratios if each[1].remark != NOT_CLOSELY]
            ratios = [("speed", Cell("", remark=NOT_CLOSELY)), *known]
        return ", ".join(
            f"{name.removesuffix(' in memory')} {cell.remark or cell.ratio}"
            for name, cell in ratios
        )
    # What follows is the figures, which are too many for a line.
    return step.reason.partition(": it ")[0].rstrip(".")


def covered(step: Step) -> str:
    """Say how much of the model a step changed; empty if it gave no account."""
    coverage = step.coverage
    return f"{coverage.covered:,} of {coverage.total:,} {coverage.unit}" if coverage else ""


def skipped_by_reason(step: Step) -> list[tuple[str, list[str]]]:
    """Return the layers that a step left alone under their reasons, the commonest first."""
    skipped = step.coverage.skipped if step.coverage else []
    counted = Counter(layer.reason for layer in skipped)
    return [
        (reason, [layer.name for layer in skipped if layer.reason == reason])
        for reason, _ in counted.most_common()
    ]


def option_text(value: Any) -> str:
    """Write an option's value as the user would type it."""
    return value if isinstance(value, str) else _json_like(value)


def _json_like(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        items = [option_text(item) for item in value[:SHOWN_ITEMS]]
        more = len(value) - len(items)
        return ", ".join([*items, *([f"and {more} more"] if more else [])]) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)
