"""Two reports side by side: what was found in both, and what keeps it from being comparable."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from statistics import median
from typing import Any

from truthgpt_services.report import noise
from truthgpt_services.results.schema import Report, Samples, Variant
from truthgpt_services.results.statistics import unpaired_ratio


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity of one variant in both reports.

    Attributes:
        name: what it is.
        unit: "tok/s", "s", "bytes", "nats/token", "share", or empty if it has none.
        a: in the first report; None if it lacks it.
        b: in the second.
        ratio: b / a; None where one is missing, or `a` is 0.
        low: lower end of the ratio's bootstrap interval, for what was measured in
            launches or rounds; None for all else.
        high: its upper end.
    """

    name: str
    unit: str
    a: float | None
    b: float | None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """Something about the runs themselves that is not the same."""

    what: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two reports side by side.

    Attributes:
        warnings: what must not be compared, and why; a sentence each.
        differences: in machine, versions, model, text and settings.
        variants: the name of each variant that both have, and its figures.
        only_a: names of variants that only the first has.
        only_b: names of variants that only the second has.
    """

    warnings: list[str]
    differences: list[Difference]
    variants: list[tuple[str, list[Figure]]]
    only_a: list[str]
    only_b: list[str]

    def as_data(self) -> dict[str, Any]:
        """Return what `truthgpt compare --json` prints."""
        data = asdict(self)
        data["variants"] = [
            {"name": name, "figures": [asdict(figure) for figure in figures]}
            for name, figures in self.variants
        ]
        return data


def compare_reports(a: Report, b: Report) -> Comparison:
    """Put two reports side by side.

    Args:
        a: what the ratios refer to.
        b: what is compared with it: a ratio is b / a.
    """
    of_a, of_b = _by_name(a), _by_name(b)
    closely = a.settings.closely and b.settings.closely
    return Comparison(
        warnings=_warnings(a, b),
        differences=_differences(a, b),
        variants=[
            (name, _figures(of_a[name], of_b[name], closely=closely))
            for name in of_a
            if name in of_b
        ],
        only_a=[name for name in of_a if name not in of_b],
        only_b=[name for name in of_b if name not in of_a],
    )


def _by_name(report: Report) -> dict[str, Variant]:
    return {variant.name: variant for variant in report.variants}


def _warnings(a: Report, b: Report) -> list[str]:
    found = []
    if (a.source.architecture, a.source.parameters) != (b.source.architecture, b.source.parameters):
        found.append("The models differ: no figure of one says anything about the other.")
    elif (a.source.spec, a.source.file_bytes) != (b.source.spec, b.source.file_bytes):
        found.append("The models may differ: they are named differently, or their files are.")
    if a.source.dtype != b.source.dtype:
        found.append(
            "The baselines differ in dtype: KL, agreement and flips refer to different models."
        )
    if noise.engines(a) != noise.engines(b):
        found.append("The engines differ: so do speeds, whatever was done to the models.")
    if a.text != b.text:
        found.append("The texts differ: no figure of quality can be compared.")
    if a.machine != b.machine:
        found.append("The machines differ: speed, memory and times say nothing of the models.")
    lengths = [(each.settings.prompt_tokens, each.settings.new_tokens) for each in (a, b)]
    if lengths[0] != lengths[1]:
        found.append("The timed texts differ in length: speeds cannot be compared.")
    for side, report in (("A", a), ("B", b)):
        if not report.settings.closely:
            found.append(f"{side} was not measured closely enough to compare speeds.")
        if report.load is not None and report.load.warning:
            found.append(f"{side} was measured on a busy machine: {report.load.warning}")
    if a.settings.gate != b.settings.gate:
        found.append("The bounds differ: what was accepted of one might not be of the other.")
    return found


def _differences(a: Report, b: Report) -> list[Difference]:
    sides = [_facts(a), _facts(b)]
    names = list(dict.fromkeys([*sides[0], *sides[1]]))
    pairs = [(name, *(side.get(name, "none") for side in sides)) for name in names]
    return [Difference(name, one, other) for name, one, other in pairs if one != other]


def _facts(report: Report) -> dict[str, str]:
    facts: dict[str, Any] = {}
    for title, record, skipped in (
        ("model", report.source, ()),
        ("machine", report.machine, ()),
        ("text", report.text, ()),
        ("settings", report.settings, ("gate",)),
        ("bounds", report.settings.gate, ()),
        ("replay", report.replay, ("sha256",)),
    ):
        for field in type(record).model_fields if record is not None else ():
            if field not in skipped:
                facts[f"{title}: {field.replace('_', ' ')}"] = getattr(record, field)
    facts["seed"] = report.seed
    facts |= {f"version: {name}": version for name, version in sorted(report.versions.items())}
    return {name: _written(value) for name, value in facts.items()}


def _written(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


_ROUNDS: Sequence[tuple[str, str, Callable[[Variant], Samples]]] = (
    ("Decode", "tok/s", lambda variant: variant.measured.decode_tokens_per_second),
    ("Prefill", "tok/s", lambda variant: variant.measured.prefill_tokens_per_second),
    ("First token", "s", lambda variant: variant.measured.first_token_seconds),
)
_SINGLE: Sequence[tuple[str, str, Callable[[Variant], float | None]]] = (
    ("Weights in memory", "bytes", lambda variant: variant.measured.weights_bytes),
    ("Keys and values of a token", "bytes", lambda variant: variant.measured.cache_bytes_per_token),
    ("Peak memory", "bytes", lambda variant: variant.measured.peak_memory_bytes),
    ("Saved files", "bytes", lambda variant: variant.measured.saved_bytes or None),
    ("Load", "s", lambda variant: variant.measured.load_seconds),
    ("Warm-up", "s", lambda variant: variant.measured.warmup_seconds),
    ("Perplexity", "", lambda variant: variant.measured.quality.perplexity),
    ("KL mean", "nats/token", lambda variant: variant.measured.quality.kl_mean),
    ("KL 99.9th percentile", "nats/token", lambda variant: variant.measured.quality.kl_p999),
    ("Top-1 agreement", "share", lambda variant: variant.measured.quality.top1_agreement),
    ("Flips", "share", lambda variant: variant.measured.quality.flips),
    ("Decode-path KL", "nats/token", lambda variant: variant.measured.quality.decode_kl_mean),
)


def _repeated(measured: Samples) -> list[float]:
    """Return what was repeated: the median of each launch, or the rounds of a single one."""
    values = iter(measured.values)
    launches = [list(islice(values, count)) for count in measured.launches]
    found = [median(launch) for launch in launches if launch]
    return found if len(found) > 1 else measured.values


def _figures(a: Variant, b: Variant, *, closely: bool) -> list[Figure]:
    figures = []
    for name, unit, rounds in _ROUNDS:
        one, other = rounds(a), rounds(b)
        if not closely:
            figures.append(Figure(name, unit, one.median, other.median))
            continue
        if one.values and other.values and min(one.values) > 0:
            measured = unpaired_ratio(_repeated(other), _repeated(one))
        else:
            measured = (math.nan, math.nan, math.nan)
        figures.append(Figure(name, unit, one.median, other.median, *measured))
    for name, unit, single in _SINGLE:
        before, after = single(a), single(b)
        ratio = after / before if before and after is not None else None
        figures.append(Figure(name, unit, before, after, ratio))
    return figures
