"""What a report compares: its quantities as rows, its variants as columns.

The page and the terminal draw the same rows, so they cannot say different things.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from truthgpt_services.report.formatting import (
    ABSENT,
    NO_DIFFERENCE,
    TIMES,
    bound,
    number,
    plus_minus,
    ratio,
    ratio_interval,
    samples,
    seconds,
    seconds_interval,
    share,
    size,
)
from truthgpt_services.report.schema import Measurements, Ratio, Report, Samples, Step, Variant

BASELINE = "the baseline"
SOURCE_FILE = "the source file"


@dataclass(frozen=True, slots=True)
class Cell:
    """One quantity of one variant.

    Attributes:
        figure: what was measured, with its unit if the row has none.
        interval: the interval of the figure; may be empty.
        ratio: the figure against the row's reference; may be empty.
        ratio_interval: the interval of the ratio; may be empty.
        remark: what follows from it, in a few words; may be empty.
    """

    figure: str
    interval: str = ""
    ratio: str = ""
    ratio_interval: str = ""
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One quantity.

    Attributes:
        name: what it is.
        cells: one for each variant, in the report's order.
        unit: the unit of its figures, if they do not carry their own.
        better: "more" or "less"; empty if neither is.
        against: what the ratios refer to.
        note: how it is measured, in a sentence.
    """

    name: str
    cells: list[Cell]
    unit: str = ""
    better: str = ""
    against: str = BASELINE
    note: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that belong together."""

    name: str
    rows: list[Row] = field(default_factory=list)


def groups(report: Report) -> list[Group]:
    """Return the rows of the main table."""
    return [_speed(report), _memory(report), _start(report), _quality(report)]


def ratio_cell(figure: str, interval: str, measured: Ratio | None) -> Cell:
    """Return a cell whose ratio has an interval, and say so if it tells no difference."""
    if measured is None:
        return Cell(figure, interval)
    remark = "" if measured.differs else NO_DIFFERENCE
    return Cell(figure, interval, *ratio_interval(measured), remark)


def find_variant(report: Report, name: str | None) -> Variant | None:
    """Return the variant of this name, or None if there is none."""
    return next((variant for variant in report.variants if variant.name == name), None)


def shown_by(report: Report, variant: Variant) -> str:
    """Say in a word or two what became of a variant; empty if nothing did."""
    if variant.name == report.result.variant:
        return "result"
    outcomes = [str(step.outcome) for step in report.steps if step.variant == variant.name]
    return outcomes[-1] if outcomes else ""


def took(report: Report, step: Step) -> str:
    """Say how long a step took, and how long its first use did; empty if it was not applied."""
    if not step.seconds:
        return ""
    shown = find_variant(report, step.variant)
    first = f", then {seconds(shown.measured.warmup_seconds)} of first use" if shown else ""
    return f"{seconds(step.seconds)}{first}"


def judged(report: Report, step: Step) -> list[tuple[str, Cell]]:
    """Return what a step was judged on, each as the ratio to the variant it was judged against."""
    found = [
        (name, ratio_cell("", "", measured))
        for name, measured in (("decode", step.decode_ratio), ("prefill", step.prefill_ratio))
        if measured is not None
    ]
    after, before = find_variant(report, step.variant), find_variant(report, step.against)
    if after and before:
        weights = _over(after.measured.weights_bytes, before.measured.weights_bytes)
        found.append(("weights in memory", Cell("", ratio=weights)))
    return found


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


def source_note(report: Report) -> str:
    """Say how the source file and the loaded baseline differ in size."""
    source, loaded = report.source, report.variants[0].measured.weights_bytes
    text = (
        f"The source file ({source.kind}) is {size(source.file_bytes)}. "
        f"Loaded as {source.dtype}, the baseline takes {size(loaded)} in memory"
    )
    grown = _over(loaded, source.file_bytes)
    text += f", {grown} the file. " if grown else ". "
    return text + (
        "Ratios are against the loaded baseline; "
        "only saved files are compared with the source file."
    )


def _speed(report: Report) -> Group:
    return Group(
        "Speed",
        [
            Row(
                "Decode",
                [
                    _rate(report, v, v.measured.decode_tokens_per_second, v.decode_ratio)
                    for v in report.variants
                ],
                unit="tok/s",
                better="more",
                note="Tokens generated per second.",
            ),
            Row(
                "Prefill",
                [
                    _rate(report, v, v.measured.prefill_tokens_per_second, v.prefill_ratio)
                    for v in report.variants
                ],
                unit="tok/s",
                better="more",
                note="Tokens of the prompt read per second.",
            ),
            Row(
                "First token",
                [_first_token(report, variant) for variant in report.variants],
                better="less",
                note="Prompt in to first token out, when warm.",
            ),
        ],
    )


def _memory(report: Report) -> Group:
    first = report.variants[0]
    file_bytes = report.source.file_bytes
    saved = [
        Cell(size(bytes_), ratio=_over(bytes_, file_bytes)) if bytes_ else Cell(ABSENT)
        for bytes_ in (variant.measured.saved_bytes for variant in report.variants)
    ]
    build = [variant.measured.build_peak_memory_bytes for variant in report.variants]
    return Group(
        "Memory and disk",
        [
            Row(
                "Weights in memory",
                _sizes(report, lambda measured: measured.weights_bytes),
                better="less",
                note="Parameters and buffers, shared ones once.",
            ),
            Row(
                "Peak memory",
                _sizes(report, lambda measured: measured.peak_memory_bytes),
                better="less",
                note="Highest of the process while it ran the model.",
            ),
            Row(
                "Peak while made",
                [Cell(size(bytes_) if bytes_ else ABSENT) for bytes_ in build],
                better="less",
                note="Highest while the variant was made; the baseline is only loaded.",
            ),
            Row(
                "Source file",
                [
                    Cell(size(file_bytes) if variant is first else ABSENT)
                    for variant in report.variants
                ],
                note="Weight files that the baseline was loaded from.",
            ),
            Row(
                "Saved files",
                saved,
                better="less",
                against=SOURCE_FILE,
                note="Weight files of the saved model.",
            ),
        ],
    )


def _start(report: Report) -> Group:
    return Group(
        "Until it is ready",
        [
            Row(
                "Load",
                _plain(report, lambda measured: seconds(measured.load_seconds)),
                better="less",
            ),
            Row(
                "Warm-up",
                _plain(report, lambda measured: seconds(measured.warmup_seconds)),
                better="less",
                note="First prompt and tokens, compiling included.",
            ),
        ],
    )


def _quality(report: Report) -> Group:
    return Group(
        "Quality",
        [
            Row(
                "Perplexity",
                [_perplexity(report, variant) for variant in report.variants],
                better="less",
                note="Of the text, read in windows.",
            ),
            Row(
                "KL mean",
                [
                    Cell(
                        *plus_minus(quality.kl_mean, quality.kl_mean_error),
                        remark=_kl_remark(report, quality.kl_mean),
                    )
                    for quality in (variant.measured.quality for variant in report.variants)
                ],
                unit="nats/token",
                better="less",
                note="Divergence from the baseline, with its standard error.",
            ),
            Row(
                "KL 99.9th percentile",
                _plain(report, lambda measured: number(measured.quality.kl_p999)),
                unit="nats/token",
                better="less",
                note="One token in a thousand is further off.",
            ),
            Row(
                "Top-1 agreement",
                _plain(report, lambda measured: share(measured.quality.top1_agreement)),
                better="more",
                note="Tokens whose first choice is the baseline's.",
            ),
            Row(
                "Decode-path KL",
                [
                    Cell(number(kl), remark=_kl_remark(report, kl))
                    for kl in (v.measured.quality.decode_kl_mean for v in report.variants)
                ],
                unit="nats/token",
                better="less",
                note="The same, one token at a time, as text is generated.",
            ),
            Row(
                "Decode-path top-1",
                _plain(report, lambda measured: share(measured.quality.decode_top1_agreement)),
                better="more",
                note="The same, one token at a time, as text is generated.",
            ),
        ],
    )


def _rate(report: Report, variant: Variant, measured: Samples, against: Ratio) -> Cell:
    compared = variant is not report.variants[0]
    return ratio_cell(*samples(measured), against if compared else None)


def _first_token(report: Report, variant: Variant) -> Cell:
    measured = variant.measured.first_token_seconds
    interval = seconds_interval(measured.median, measured.low, measured.high)
    reference = report.variants[0].measured.first_token_seconds.median
    compared = variant is not report.variants[0]
    return Cell(
        seconds(measured.median), interval, _over(measured.median, reference) if compared else ""
    )


def _perplexity(report: Report, variant: Variant) -> Cell:
    perplexity, first = variant.measured.quality.perplexity, report.variants[0]
    if variant is first:
        return Cell(number(perplexity, 4))
    most = report.settings.gate.max_perplexity_ratio
    reference = first.measured.quality.perplexity
    within = not reference or perplexity / reference <= most
    remark = "" if within else f"over the bound of {bound(most)}{TIMES}"
    return Cell(number(perplexity, 4), ratio=_over(perplexity, reference, 3), remark=remark)


def _kl_remark(report: Report, kl: float) -> str:
    most = report.settings.gate.max_kl
    return "" if kl <= most else f"over the bound of {bound(most)}"


def _sizes(report: Report, of: Callable[[Measurements], int]) -> list[Cell]:
    first, *others = (of(variant.measured) for variant in report.variants)
    return [Cell(size(first)), *(Cell(size(one), ratio=_over(one, first)) for one in others)]


def _plain(report: Report, written: Callable[[Measurements], str]) -> list[Cell]:
    return [Cell(written(variant.measured)) for variant in report.variants]


def _over(candidate: float, reference: float, decimals: int | None = None) -> str:
    return ratio(candidate / reference, decimals) if reference else ""


def option_text(value: Any) -> str:
    """Write an option's value as a person would type it."""
    return value if isinstance(value, str) else _json_like(value)


def _json_like(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(option_text(item) for item in value) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)
