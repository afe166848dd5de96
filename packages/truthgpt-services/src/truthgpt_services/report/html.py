"""Shows a report as one page that needs no network and no script."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from truthgpt_services.formatting import (
    ABSENT,
    DASH,
    TIMES,
    WITHIN_NOISE,
    bound,
    moment,
    number,
    plus_minus,
    ratio,
    ratio_interval,
    samples,
    share,
    share_plus_minus,
    size,
    visible,
)
from truthgpt_services.report import noise, plots, quantities, steps
from truthgpt_services.report.costs import DECODE, PEAK, PREFILL, WEIGHTS, find_costs
from truthgpt_services.results.schema import Outcome, Quality, Ratio, Report, Samples, Variant

_SYMBOLS = {
    Outcome.ACCEPTED: "\N{CHECK MARK}",
    Outcome.REJECTED: "\N{LEFTWARDS ARROW WITH HOOK}",
    Outcome.UNDECIDED: "?",
    Outcome.NOT_APPLIED: "\N{EN DASH}",
    Outcome.FAILED: "\N{BALLOT X}",
}
GAIN, COST = "gain", "cost"


@dataclass(frozen=True, slots=True)
class KeyFigure:
    """One of the result's figures, large, and under it what it stands against.

    Attributes:
        label: what it is.
        figure: the figure, or a few words.
        lines: what it stands against.
        kind: "gain", "cost", or empty if it is neither.
    """

    label: str
    figure: str
    lines: Sequence[str]
    kind: str = ""

    @property
    def in_words(self) -> bool:
        """Whether it is words, which are not set as large as a figure."""
        return self.figure in (WITHIN_NOISE, quantities.NOT_CLOSELY)


def render_html(report: Report) -> str:
    """Return the page of a report."""
    result = quantities.find_variant(report, report.result.variant)
    groups = quantities.groups(report)
    cells = [cell for group in groups for row in group.rows for cell in row.cells]
    judged = [cell for step in report.steps for _, cell in steps.judged(report, step)]
    return _template().render(
        report=report,
        style=Markup(_resource("report.css")),  # noqa: S704 - our own file
        key_figures=_key_figures(report, result) if result else [],
        groups=groups,
        columns=[
            {
                "name": variant.name,
                "mark": plots.lone_marker(index, marked=variant is result),
                "is_result": variant is result,
                "became": steps.variant_outcome(report, variant),
            }
            for index, variant in enumerate(report.variants)
        ],
        some_same=any(cell.remark == WITHIN_NOISE for cell in (*cells, *judged)),
        within_noise=WITHIN_NOISE,
        absent=quantities.Cell(ABSENT),
        mild=(WITHIN_NOISE, quantities.NOT_CLOSELY),
        source_note=quantities.source_note(report),
        plots=_plots(report),
        alarm=quantities.alarm(report),
        warnings=noise.warnings(report),
        turns=noise.turns(report),
        launches=noise.launch_table(report),
        has_launches=noise.has_launches(report),
        symbols=_SYMBOLS,
        samples=_samples(report, result),
        created=moment(report.created),
        command=shlex.join(report.command),
        facts=_facts(report),
    )


def common_start(one: str, other: str) -> int:
    """Return how many characters two texts share at their start, cut back to a whole word."""
    if one == other:
        return len(one)
    pairs = enumerate(zip(one, other, strict=False))
    shared = next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
    return max((match.end() for match in re.finditer(r"\s+", one[:shared])), default=0)


def _key_figures(report: Report, result: Variant) -> list[KeyFigure]:
    measured, first = result.measured, report.variants[0].measured
    quality, gate = measured.quality, report.settings.gate
    speed, spread = samples(measured.decode_tokens_per_second)
    if result is report.variants[0]:
        return [
            KeyFigure("Decode speed", f"{speed} tok/s", [f"{_confidence(report)} {spread}"]),
            KeyFigure("Weights in memory", size(measured.weights_bytes), []),
            KeyFigure("Peak memory", size(measured.peak_memory_bytes), []),
            KeyFigure("Perplexity", number(quality.perplexity, 4), []),
        ]
    figures = [
        _speed(
            report,
            DECODE,
            result.decode_ratio,
            measured.decode_tokens_per_second,
            first.decode_tokens_per_second,
        ),
        _speed(
            report,
            PREFILL,
            result.prefill_ratio,
            measured.prefill_tokens_per_second,
            first.prefill_tokens_per_second,
        ),
        _sizes(WEIGHTS, measured.weights_bytes, first.weights_bytes, 1.0),
        _sizes(PEAK, measured.peak_memory_bytes, first.peak_memory_bytes, 0.95),
    ]
    costs = find_costs(
        measured,
        first,
        decode=result.decode_ratio,
        prefill=result.prefill_ratio,
        file_bytes=report.source.file_bytes,
        closely=noise.is_close(report, result.decode_ratio),
    )
    known = {figure.label: figure for figure in figures}
    worse = [
        replace(known.pop(cost.name, KeyFigure(cost.name, cost.figure, [cost.detail])), kind=COST)
        for cost in costs
    ]
    return [
        *(figure for figure in known.values() if figure.kind == GAIN),
        *worse,
        *(figure for figure in known.values() if not figure.kind),
        KeyFigure(
            "Perplexity",
            _over(quality.perplexity, first.quality.perplexity, 3),
            [
                f"{number(quality.perplexity, 4)} against {number(first.quality.perplexity, 4)}",
                f"bound {bound(gate.max_perplexity_ratio)}{TIMES}",
            ],
        ),
        KeyFigure(
            "KL to the baseline",
            number(quality.kl_mean, 2),
            [
                f"{' '.join(plus_minus(quality.kl_mean, quality.kl_mean_error))} nats per token",
                f"bound {bound(gate.max_kl)}",
            ],
        ),
        KeyFigure(
            "Top-1 agreement",
            share(quality.top1_agreement),
            ["of tokens have the baseline's first choice", *_flips_line(quality)],
        ),
    ]


def _speed(
    report: Report, label: str, measured: Ratio, after: Samples, before: Samples
) -> KeyFigure:
    rates = f"{samples(after)[0]} against {samples(before)[0]} tok/s"
    if not noise.is_close(report, measured):
        return KeyFigure(label, quantities.NOT_CLOSELY, [rates])
    middle, ends = ratio_interval(measured)
    if not measured.differs:
        return KeyFigure(label, WITHIN_NOISE, [rates, f"{middle} ({ends})"])
    kind = GAIN if measured.low > 1.0 else ""
    return KeyFigure(label, middle, [rates, f"{_confidence(report)} {ends}"], kind)


def _flips_line(quality: Quality) -> list[str]:
    if quality.flips is None:
        return []
    return [f"flips {' '.join(share_plus_minus(quality.flips, quality.flips_error or 0.0))}"]


def _sizes(label: str, after: int, before: int, smaller: float) -> KeyFigure:
    kind = GAIN if after < smaller * before else ""
    return KeyFigure(label, _over(after, before), [f"{size(after)} against {size(before)}"], kind)


def _over(after: float, before: float, decimals: int | None = None) -> str:
    return ratio(after / before, decimals) if before else number(after)


def _confidence(report: Report) -> str:
    return f"{report.settings.confidence * 100:g} % interval"


def _plots(report: Report) -> list[dict[str, Any]]:
    variants = [(v, v.measured, v.name == report.result.variant) for v in report.variants]
    speeds = [
        plots.Speeds(v.name, rates.median, rates.low, rates.high, rates.values, marked)
        for v, rates, marked in ((v, m.decode_tokens_per_second, r) for v, m, r in variants)
    ]
    sizes = [
        plots.Memory(v.name, m.weights_bytes, m.peak_memory_bytes, marked)
        for v, m, marked in variants
    ]
    tradeoffs = [
        plots.Tradeoff(
            v.name,
            m.quality.kl_mean,
            m.quality.kl_mean_error,
            m.decode_tokens_per_second.median,
            m.decode_tokens_per_second.low,
            m.decode_tokens_per_second.high,
            marked,
        )
        for v, m, marked in variants
    ]
    return [
        {
            "title": "Decode speed",
            "drawn": plots.decode_speed(speeds),
            "note": f"{noise.rounds_note(report)} "
            f"The line is the median, the band its {_confidence(report)}.",
        },
        {
            "title": "Memory",
            "drawn": plots.memory(sizes),
            "note": "Weights are what the model holds; the peak is all that the process used.",
        },
        {
            "title": "Speed against divergence",
            "drawn": plots.speed_against_kl(tradeoffs, report.settings.gate.max_kl),
            "note": "Up is faster, left is closer to the baseline. "
            "Bars are the interval of the speed and the standard error of the KL.",
        },
        *_layers(report),
        *_choices(report),
    ]


def _layers(report: Report) -> list[dict[str, Any]]:
    """Return the plot of what the logit lens shows, with its numbers as a table."""
    known = [(index, v, v.layers) for index, v in enumerate(report.variants) if v.layers]
    missing = [f"{v.name}: {v.layers_missing}." for v in report.variants if v.layers_missing]
    if not known and not missing:
        return []
    lines = [
        plots.Layers(
            v.name, index, [each.kl_mean for each in found], v.name == report.result.variant
        )
        for index, v, found in known
    ]
    rows = [
        [str(each[0].layer), *(" ".join(plus_minus(a.kl_mean, a.kl_mean_error)) for a in each)]
        for each in zip(*(found for _, _, found in known), strict=False)
    ]
    return [
        {
            "title": "Divergence after each layer",
            "drawn": plots.layers(lines) if lines else "",
            "note": "KL to the baseline if each layer were the last: what it leaves, read through "
            "the baseline's norm and output embedding (the logit lens, nostalgebraist 2020). "
            "The last layer's is that of the real predictions. " + " ".join(missing),
            "columns": [v.name for _, v, _ in known],
            "rows": rows,
        }
    ]


def _choices(report: Report) -> list[dict[str, Any]]:
    """Return a plot for each step that chose something for each layer."""
    return [
        {
            "title": f"What {step.name} chose for each layer",
            "drawn": plots.choices([(each.choice, each.divergence) for each in step.choices]),
            "note": "How far the predictions move if that layer alone is changed as much as "
            "the step may change one. The layers are in the model's order.",
            "columns": ["choice", "alone"],
            "rows": [[each.name, each.choice, number(each.divergence)] for each in step.choices],
        }
        for step in report.steps
        if step.choices
    ]


def _samples(report: Report, result: Variant | None) -> dict[str, Any]:
    first = report.variants[0]
    displayed = [first] if result is None or result is first else [first, result]
    pieces: list[dict[str, str]] = []
    for variant in displayed:
        text = variant.measured.sample
        cut = common_start(first.measured.sample, text) if variant is not first else len(text)
        pieces.append({"name": variant.name, "same": text[:cut], "other": text[cut:]})
    return {
        "shown": pieces,
        "equal": len(displayed) == 2 and first.measured.sample == displayed[1].measured.sample,
        "others": [variant for variant in report.variants if variant not in displayed],
    }


def _facts(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    machine, source, text, settings = report.machine, report.source, report.text, report.settings
    gate, load, recorded = settings.gate, report.load, noise.replay_line(report)
    return [
        (
            "Model",
            [
                ("Source", source.spec),
                ("Kind", source.kind),
                ("Architecture", source.architecture),
                ("Parameters", f"{source.parameters:,}"),
                ("Source file", size(source.file_bytes)),
                ("Engine", noise.engines(report)),
                (
                    "Baseline dtype",
                    source.dtype
                    + (", the model's own" if source.dtype_is_native else ", asked for by --dtype"),
                ),
            ],
        ),
        (
            "Machine",
            [
                ("CPU", machine.cpu),
                ("Cores, threads", f"{machine.cores}, {machine.threads}"),
                ("Instruction set", machine.cpu_capability),
                ("Memory", size(machine.memory_bytes)),
                ("Accelerators", ", ".join(machine.accelerators) or "none"),
                ("Device used", machine.device),
                ("System", machine.system),
                ("Python", machine.python),
            ],
        ),
        (
            "Measuring",
            [
                ("Launches of each variant", noise.launches_line(report)),
                ("Rounds in a launch", f"{settings.rounds:,}"),
                ("Prompt tokens", f"{settings.prompt_tokens:,}"),
                ("New tokens", f"{settings.new_tokens:,}"),
                ("Intervals of ratios", noise.interval_line(report)),
                *([("Other programs, CPU cores", noise.load_line(load))] if load else []),
                ("Seed", str(report.seed)),
                ("Text", text.name),
                (
                    "Tokens of the text",
                    f"{text.tokens:,} in windows of {text.window:,}; "
                    f"{text.decode_tokens:,} one at a time",
                ),
                ("Text SHA-256", text.sha256),
                *([("Recorded for replay", recorded)] if recorded else []),
            ],
        ),
        (
            "Bounds of a step",
            quantities.bounds(gate),
        ),
        ("Versions", sorted(report.versions.items())),
    ]


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_finalized,
    )
    environment.filters["unbroken"] = _unbroken
    environment.filters["option"] = steps.option_text
    environment.globals["covered"] = steps.covered
    environment.globals["took"] = steps.took
    environment.globals["outcome"] = steps.outcome
    environment.globals["breaks_even"] = steps.breaks_even
    environment.globals["judged"] = steps.judged
    environment.globals["skipped_by_reason"] = steps.skipped_by_reason
    return environment.from_string(_resource("report.html.j2"))


def _unbroken(text: str) -> str:
    """Keep a figure and its unit, and both ends of an interval, on one line."""
    text = re.sub(rf"(?<=\d){DASH}(?=\d)", f"{DASH}\N{WORD JOINER}", text)
    return re.sub(r"(?<=\d) (?=(?:[kMGTP]?B|m?s|%|tok/s)\b|%)", "\N{NO-BREAK SPACE}", text)


def _finalized(value: object) -> object:
    return visible(str(value)) if isinstance(value, str) and type(value) is not Markup else value


def _resource(name: str) -> str:
    return files("truthgpt_services.report").joinpath(name).read_text(encoding="utf-8")
