"""How noisy a run was: its launches, the control, and what other programs did meanwhile."""

from __future__ import annotations

import math
from dataclasses import dataclass

from truthgpt_services.formatting import ABSENT, ratio, ratio_interval
from truthgpt_services.results.schema import Load, Ratio, Report

CONTROL = "control"


@dataclass(frozen=True, slots=True)
class LaunchTable:
    """The median ratio of each launch.

    Attributes:
        columns: of whom, and of which speed.
        rows: the number of the launch, then a ratio for each column.
    """

    columns: list[str]
    rows: list[list[str]]


def is_close(report: Report, measured: Ratio) -> bool:
    """Whether a ratio was measured closely enough to be shown.

    A step whose time ran out has fewer launches than the others of its report.
    """
    settings = report.settings
    # An older report has no launches.
    enough = not measured.launches or len(measured.launches) >= settings.launches
    return settings.closely and enough and not math.isinf(measured.high - measured.low)


def warnings(report: Report) -> list[str]:
    """Return a sentence for each thing that makes speeds less certain than usual."""
    found = []
    if not report.settings.closely:
        found.append(
            "Speed was not measured closely enough to claim a difference: more launches or rounds "
            "are needed."
        )
    if report.load is not None and report.load.warning:
        found.append(report.load.warning)
    found += [
        f"The control differs: the baseline against itself {verb} {middle} as fast ({ends})."
        for verb, measured in _control(report)
        for middle, ends in [ratio_interval(measured)]
        if measured.differs and is_close(report, measured)
    ]
    return found


def turns(report: Report) -> str:
    """Say how often everything was measured, as in "5 launches of 7 rounds"."""
    rounds = f"{report.settings.rounds:,} rounds"
    counts = {
        max(len(variant.measured.decode_tokens_per_second.launches), 1)
        for variant in report.variants[1:] or report.variants
    }
    least, most = min(counts), max(counts)
    if most == 1 and report.settings.launches == 1:
        return rounds
    between = f"{least}" if least == most else f"{least} to {most}"
    return f"{between} {'launch' if most == 1 else 'launches'} of {rounds}"


def launches_line(report: Report) -> str:
    """Say how many processes of each variant were to be measured."""
    least, most = report.settings.launches, report.settings.max_launches
    return f"{least:,}" if most <= least else f"{least:,}, at most {most:,} while undecided"


def interval_line(report: Report) -> str:
    """Say what the intervals of ratios are made from."""
    confidence = f"{report.settings.confidence * 100:g} %"
    if not has_launches(report):
        return f"{confidence}, bootstrap of the rounds"
    return f"{confidence} over both speeds and all looks together; t over launches"


def load_line(load: Load) -> str:
    """Say what other programs did, in CPU cores that they kept busy."""
    levels = [
        f"{value:.1f} {when}"
        for value, when in (
            (load.before, "before"),
            (load.median, "while measuring (median)"),
            (load.highest, "at most"),
        )
        if value is not None
    ]
    return f"{', '.join(levels)}, of {load.cores}" if levels else "unknown"


def replay_line(report: Report) -> str:
    """Say what the predictions of the result were recorded on; empty if they were not to be."""
    replay = report.replay
    if replay is None:
        return report.replay_missing and f"nothing: {report.replay_missing}"
    on = ", ".join(filter(None, (replay.engine, replay.distribution, replay.kernel)))
    return f"{replay.tokens:,} tokens on {on}"


def launch_table(report: Report) -> LaunchTable | None:
    """Return the ratios of each launch, the control first; None if there were no launches."""
    columns: list[tuple[str, Ratio]] = []
    if report.control is not None:
        columns += [
            (f"{CONTROL}, decode", report.control.decode_ratio),
            (f"{CONTROL}, prefill", report.control.prefill_ratio),
        ]
    for variant in report.variants[1:]:
        columns += [
            (f"{variant.name}, decode", variant.decode_ratio),
            (f"{variant.name}, prefill", variant.prefill_ratio),
        ]
    columns = [
        (name, measured)
        for name, measured in columns
        if measured.launches and is_close(report, measured)
    ]
    if not columns:
        return None
    count = max(len(measured.launches) for _, measured in columns)
    return LaunchTable(
        [name for name, _ in columns],
        [
            [
                str(launch + 1),
                *(
                    ratio(measured.launches[launch], 3)
                    if launch < len(measured.launches)
                    else ABSENT
                    for _, measured in columns
                ),
            ]
            for launch in range(count)
        ],
    )


def rounds_note(report: Report) -> str:
    """Say what a dot of the plot of speeds stands for."""
    speeds = [variant.measured.decode_tokens_per_second for variant in report.variants]
    if any(len(speed.launches) > 1 for speed in speeds):
        return "Each dot is a round, the first of the first launch at the top."
    return "Each dot is a round, the first at the top."


def _control(report: Report) -> list[tuple[str, Ratio]]:
    if report.control is None:
        return []
    return [
        ("decodes", report.control.decode_ratio),
        ("reads prompts", report.control.prefill_ratio),
    ]


def has_launches(report: Report) -> bool:
    """Whether intervals come from how launches differ; in older reports they do not."""
    return any(
        variant.decode_ratio.launches or variant.prefill_ratio.launches
        for variant in report.variants[1:]
    )


def engines(report: Report) -> str:
    """Say what ran the models: one name, or which variants ran on which."""
    variants: dict[str, list[str]] = {}
    for each in report.variants:
        variants.setdefault(each.measured.engine, []).append(each.name)
    if len(variants) == 1:
        return next(iter(variants))
    return "; ".join(f"{engine}: {', '.join(names)}" for engine, names in variants.items())
