"""The phases of the main job, with what they take on a small machine with a small model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from truthgpt_core.optimization import Optimization, Stage
from truthgpt_services.measuring.speed import Plan
from truthgpt_services.optimizing.schedule import Phase

BASELINE = "baseline"
RECORDING = "Recording predictions"


def beginning() -> list[Phase]:
    """Until the baseline is warm."""
    return [
        Phase("Starting the baseline", 10.0, "start"),
        Phase(f"Loading {BASELINE}", 1.0, "load"),
        Phase(f"Warming up {BASELINE}", 2.0, "warm up"),
    ]


def timing(names: Sequence[str], plan: Plan) -> Phase:
    """The launches of these models, up to the first look."""
    return Phase("Timing " + ", ".join(names), 4.0 * plan.launches * len(names), "time")


def of_steps(
    accepted: Sequence[str], to_come: Iterable[Optimization[Any]], plan: Plan
) -> list[Phase]:
    """Of steps that are still to be tried, if each of them is accepted."""
    phases, names = [], list(accepted)
    for step in to_come:
        names.append(step.name)
        name = " + ".join(names)
        executes = step.stage is Stage.EXECUTION
        phases += [
            Phase(f"Making {name}", 10.0, "make"),
            Phase(f"Loading {name}", 1.0, "load"),
            Phase(f"Warming up {name}", 30.0 if executes else 2.0, f"warm up, {executes}"),
            Phase(f"Comparing {name} with {BASELINE}", 5.0, "compare"),
            timing([BASELINE, "control", name], plan),
        ]
    return [*phases, Phase(RECORDING, 1.0, "record"), Phase("Writing the result", 1.0, "write")]


def of_evaluation(plan: Plan) -> list[Phase]:
    """Of one model alone."""
    return [Phase(f"Reading the text with {BASELINE}", 4.0, "compare"), timing([BASELINE], plan)]
