"""What a report compares: its quantities as rows, its variants as columns.

The page and the terminal draw the same rows, so they cannot say different things.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from truthgpt_services.formatting import (
    ABSENT,
    PLUS_MINUS,
    TIMES,
    WITHIN_NOISE,
    bound,
    number,
    plus_minus,
    ratio,
    ratio_interval,
    samples,
    seconds,
    seconds_interval,
    share_plus_minus,
    size,
    visible,
)
from truthgpt_services.report import noise
from truthgpt_services.results.schema import (
    Gate,
    Measurements,
    MetricValue,
    Ratio,
    Report,
    Samples,
    Variant,
)

BASELINE = "the baseline"
SOURCE_FILE = "the source file"
NOT_CLOSELY = "not measured closely enough"
CONTROL_DIFFERS = "differs, though it is the same model"
NOT_FINITE = "not a finite number"


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
        unit_is_noted: whether a note below the table says the unit, where there is little room.
    """

    name: str
    cells: list[Cell]
    unit: str = ""
    better: str = ""
    against: str = BASELINE
    note: str = ""
    unit_is_noted: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that belong together."""

    name: str
    rows: list[Row] = field(default_factory=list)


def groups(report: Report) -> list[Group]:
    """Return the rows of the main table."""
    return [
        _speed(report),
        *_control(report),
        _memory(report),
        _start(report),
        _quality(report, "Quality, in whole windows", ""),
        _quality(report, "Quality, one token at a time", "decode_"),
        *_metrics(report),
    ]


def ratio_cell(figure: str, interval: str, measured: Ratio | None, *, closely: bool = True) -> Cell:
    """Return a cell whose ratio has an interval, and say so if noise explains it.

    Args:
        figure: what was measured.
        interval: its interval.
        measured: the ratio; None if there is nothing to compare with.
        closely: False if it was not measured closely enough to show a ratio.
    """
    if measured is None:
        return Cell(figure, interval)
    if not closely:
        return Cell(figure, interval, remark=NOT_CLOSELY)
    remark = "" if measured.differs else WITHIN_NOISE
    return Cell(figure, interval, *ratio_interval(measured), remark)


def find_variant(report: Report, name: str | None) -> Variant | None:
    """Return the variant of this name, or None if there is none."""
    return next((variant for variant in report.variants if variant.name == name), None)


def alarm(report: Report) -> str:
    """Say so if the result predicts non-finite numbers; empty otherwise."""
    result = find_variant(report, report.result.variant)
    if result is None or result.measured.quality.is_finite:
        return ""
    return f"The predictions of {result.name} are not finite numbers: it is of no use."


def bounds(gate: Gate) -> list[tuple[str, str]]:
    """Return the bounds of a step, each with its value."""
    kinds = {"any": "Faster or smaller by", "speed": "Faster by", "size": "Smaller by"}
    flips = "any" if gate.max_flips is None else f"{bound(gate.max_flips * 100)} % of tokens"
    found = [
        ("Mean KL at most", f"{bound(gate.max_kl)} nats per token"),
        ("Perplexity at most", f"{bound(gate.max_perplexity_ratio)}{TIMES} the baseline's"),
        ("Flips at most", flips),
        (kinds[gate.gain], f"{bound(gate.min_gain * 100)} % at least"),
    ]
    if gate.max_slowdown is not None:
        slower = f"{bound(gate.max_slowdown * 100)} %, beyond noise"
        found.append(("Slower by at most", slower))
    return [*found, ("Accepted", "all steps, whatever was measured")] if gate.keep_all else found


def source_note(report: Report) -> str:
    """Say how the source file and the loaded baseline differ in size."""
    source, loaded = report.source, report.variants[0].measured.weights_bytes
    text = (
        f"The source file ({source.kind}) is {size(source.file_bytes)}. "
        f"Loaded as {source.dtype}, the baseline takes {size(loaded)} in memory"
    )
    grown = over(loaded, source.file_bytes)
    text += f", {grown} the file. " if grown else ". "
    return text + (
        "Ratios are against the loaded baseline; "
        "only saved files are compared with the source file."
    )


def _speed(report: Report) -> Group:
    prompt = report.settings.prompt_tokens
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
                note=f"Tokens generated per second, after a prompt of {prompt:,}.",
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


def _control(report: Report) -> list[Group]:
    if report.control is None:
        return []
    rows = []
    for name, measured in (
        ("Decode, control", report.control.decode_ratio),
        ("Prefill, control", report.control.prefill_ratio),
    ):
        cell = ratio_cell("", "", measured, closely=noise.is_close(report, measured))
        if cell.ratio and measured.differs:
            cell = replace(cell, remark=CONTROL_DIFFERS)
        others = [Cell(ABSENT) for _ in report.variants[1:]]
        rows.append(Row(name, [cell, *others]))
    rows[0] = replace(
        rows[0], note="The baseline against itself: how far noise alone goes on this machine."
    )
    return [Group("Control", rows)]


def _memory(report: Report) -> Group:
    first = report.variants[0]
    file_bytes = report.source.file_bytes
    saved = [
        Cell(size(bytes_), ratio=over(bytes_, file_bytes)) if bytes_ else Cell(ABSENT)
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
            *_cache(report),
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


def _cache(report: Report) -> list[Row]:
    """Return the row of keys and values, if an engine says what they take."""
    each = [variant.measured.cache_bytes_per_token for variant in report.variants]
    if not any(each):
        return []
    tokens = report.settings.prompt_tokens + report.settings.new_tokens
    first = each[0] or 0
    cells = [
        Cell(size(one * tokens), ratio=over(one, first) if index else "") if one else Cell(ABSENT)
        for index, one in enumerate(each)
    ]
    note = f"Of a sequence of {tokens:,} tokens, as it was timed."
    return [Row("Keys and values", cells, better="less", note=note)]


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


def _metrics(report: Report) -> list[Group]:
    """Return a group for each metric of a plugin, with a row for each of its quantities."""
    found: dict[str, dict[str, list[MetricValue | None]]] = {}
    for index, variant in enumerate(report.variants):
        for each in variant.measured.metrics:
            rows = found.setdefault(each.metric, {})
            values = rows.setdefault(each.name, [None] * len(report.variants))
            values[index] = each
    return [
        Group(visible(metric), [_metric_row(name, values) for name, values in rows.items()])
        for metric, rows in found.items()
    ]


def _metric_row(name: str, values: list[MetricValue | None]) -> Row:
    known = next(each for each in values if each is not None)
    cells = [
        Cell(ABSENT)
        if each is None
        else Cell(number(each.value, 4))
        if each.error is None
        else Cell(*plus_minus(each.value, each.error))
        for each in values
    ]
    unit, note = visible(known.unit), visible(known.note)
    return Row(visible(name), cells, unit=unit, better=known.better, note=note)


def _quality(report: Report, name: str, path: str) -> Group:
    """Return the rows of one path; its fields begin with `path`."""

    def rows_of(field: str, cell: Callable[[Report, float, float], Cell]) -> list[Cell]:
        return [
            Cell(ABSENT) if value is None else cell(report, value, error or 0.0)
            for value, error in (_field(each, path + field) for each in report.variants)
        ]

    return Group(
        name,
        [
            Row(
                "Perplexity",
                [_perplexity(report, variant, path) for variant in report.variants],
                better="less",
                note="Of the text, with its standard error; the ratio is of the same tokens.",
            ),
            Row(
                "KL mean",
                rows_of("kl_mean", _divergence),
                unit="nats/token",
                unit_is_noted=True,
                better="less",
                note="Divergence from the baseline, with its standard error.",
            ),
            Row(
                "KL 99.9th percentile",
                rows_of("kl_p999", lambda _, value, error: Cell(*plus_minus(value, error))),
                unit="nats/token",
                unit_is_noted=True,
                better="less",
                note="One token in a thousand is further off; of fewer tokens, the furthest.",
            ),
            Row(
                "Top-1 agreement",
                rows_of("top1_agreement", lambda _, *value: Cell(*share_plus_minus(*value))),
                better="more",
                note="Tokens whose first choice is the baseline's.",
            ),
            Row(
                "Flips",
                rows_of("flips", _flips),
                better="less",
                note="Tokens that one of the two gets right as its first choice, and one wrong.",
            ),
        ],
    )


def _field(variant: Variant, field: str) -> tuple[float | None, float | None]:
    quality = variant.measured.quality
    return getattr(quality, field), getattr(quality, f"{field}_error")


def _divergence(report: Report, kl: float, error: float) -> Cell:
    most = report.settings.gate.max_kl
    over = "" if kl <= most else f"over the bound of {bound(most)}"
    return Cell(*plus_minus(kl, error), remark=over if math.isfinite(kl) else NOT_FINITE)


def _flips(report: Report, flips: float, error: float) -> Cell:
    most = report.settings.gate.max_flips
    within = most is None or flips <= most
    remark = "" if within or most is None else f"over the bound of {bound(most * 100)} %"
    return Cell(*share_plus_minus(flips, error), remark=remark)


def _rate(report: Report, variant: Variant, measured: Samples, against: Ratio) -> Cell:
    compared = variant is not report.variants[0]
    return ratio_cell(
        *samples(measured),
        against if compared else None,
        closely=noise.is_close(report, against),
    )


def _first_token(report: Report, variant: Variant) -> Cell:
    measured = variant.measured.first_token_seconds
    interval = seconds_interval(measured.median, measured.low, measured.high)
    reference = report.variants[0].measured.first_token_seconds.median
    compared = variant is not report.variants[0] and noise.is_close(report, variant.prefill_ratio)
    return Cell(
        seconds(measured.median), interval, over(measured.median, reference) if compared else ""
    )


def _perplexity(report: Report, variant: Variant, path: str) -> Cell:
    perplexity, error = _field(variant, f"{path}perplexity")
    if perplexity is None:
        return Cell(ABSENT)
    cell = Cell(number(perplexity, 4), f"{PLUS_MINUS} {number(error, 2)}" if error else "")
    first, most = report.variants[0], report.settings.gate.max_perplexity_ratio
    if variant is first:
        return cell
    reference, _ = _field(first, f"{path}perplexity")
    over = perplexity / reference if reference else 0.0
    # Of the decode path there is no bound: it has too few tokens.
    remark = "" if path or over <= most else f"over the bound of {bound(most)}{TIMES}"
    if not math.isfinite(perplexity):
        remark = NOT_FINITE
    _, noise = _field(variant, f"{path}perplexity_ratio")
    ends = f"{PLUS_MINUS} {number(noise, 2)}" if noise else ""
    ratio_text = ratio(over, 3) if reference else ""
    return replace(cell, ratio=ratio_text, ratio_interval=ends, remark=remark)


def _sizes(report: Report, of: Callable[[Measurements], int]) -> list[Cell]:
    first, *others = (of(variant.measured) for variant in report.variants)
    return [Cell(size(first)), *(Cell(size(one), ratio=over(one, first)) for one in others)]


def _plain(report: Report, written: Callable[[Measurements], str]) -> list[Cell]:
    return [Cell(written(variant.measured)) for variant in report.variants]


def over(candidate: float, reference: float, decimals: int | None = None) -> str:
    """Write candidate / reference; empty if the reference is 0."""
    return ratio(candidate / reference, decimals) if reference else ""
