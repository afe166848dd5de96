"""Measuring a candidate beside what it is compared with, taking turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from truthgpt_core.optimization import Progress
from truthgpt_services.errors import WorkerError
from truthgpt_services.measuring import quality
from truthgpt_services.measuring.process import WorkerProcess
from truthgpt_services.measuring.statistics import (
    blocks,
    interval_of_median,
    mean_with_error,
    paired_ratio,
)
from truthgpt_services.report.schema import (
    LayerDivergence,
    Measurements,
    Quality,
    Ratio,
    Samples,
)

DECODE = "decode_tokens_per_second"
PREFILL = "prefill_tokens_per_second"
FIRST = "first_token_seconds"


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: how many times the workers take turns.
        prompt_tokens: tokens of the prompt whose reading is timed.
        new_tokens: tokens that are decoded after it.
        windows: windows of text on which quality is measured.
        window: tokens in one of them.
        decode_prompt: tokens read at once before a text is followed one at a time.
        decode_tokens: tokens of that text, its prompt included.
        lens_tokens: tokens of the window whose layers are compared.
        sample_tokens: tokens of the sample text.
        trial_tokens: tokens that steps may try the model on, after those that judge them.
        seed: of the bootstrap.
    """

    rounds: int = 7
    prompt_tokens: int = 128
    new_tokens: int = 32
    windows: int = 8
    window: int = 256
    decode_prompt: int = 32
    decode_tokens: int = 128
    lens_tokens: int = 64
    sample_tokens: int = 40
    trial_tokens: int = 256
    seed: int = 0


@dataclass
class Contestant:
    """A model in a worker process, and what has been measured of it so far."""

    name: str
    worker: WorkerProcess
    opened: Mapping[str, Any]
    warmup_seconds: float = 0.0
    runs: list[Mapping[str, float]] = field(default_factory=list)
    quality: Quality | None = None
    layers: list[LayerDivergence] | None = None
    layers_missing: str = ""
    sample: str = ""

    def values(self, quantity: str, last: int | None = None) -> list[float]:
        """One value for each round, or for each of the `last` rounds."""
        runs = self.runs if last is None else self.runs[-last:]
        return [run[quantity] for run in runs]

    def measurements(self, *, saved_bytes: int, build_peak: int, seed: int) -> Measurements:
        """All that was measured, once quality was."""
        assert self.quality is not None

        def samples(quantity: str) -> Samples:
            values = self.values(quantity)
            median, low, high = interval_of_median(values, seed=seed)
            return Samples(median=median, low=low, high=high, values=values)

        return Measurements(
            load_seconds=self.opened["load_seconds"],
            warmup_seconds=self.warmup_seconds,
            decode_tokens_per_second=samples(DECODE),
            prefill_tokens_per_second=samples(PREFILL),
            first_token_seconds=samples(FIRST),
            weights_bytes=self.opened["weights_bytes"],
            saved_bytes=saved_bytes,
            peak_memory_bytes=self.worker.call("peak_memory"),
            build_peak_memory_bytes=build_peak,
            quality=self.quality,
            sample=self.sample,
        )


def ratio(candidate: Contestant, reference: Contestant, quantity: str, plan: Plan) -> Ratio:
    """Candidate / reference over the rounds in which both took turns, which are the last ones."""
    values = candidate.values(quantity)
    median, low, high = paired_ratio(
        values, reference.values(quantity, len(values)), seed=plan.seed
    )
    return Ratio(median=median, low=low, high=high)


def take_turns(
    contestants: Sequence[Contestant], ids: Sequence[int], plan: Plan, progress: Progress
) -> None:
    """Time each contestant once in every round; who begins changes from round to round."""
    what = "Timing " + ", ".join(each.name for each in contestants)
    prompt = list(ids[: plan.prompt_tokens])
    for turn in range(plan.rounds):
        progress(what, turn, plan.rounds)
        begin = turn % len(contestants)
        for each in [*contestants[begin:], *contestants[:begin]]:
            each.runs.append(each.worker.call("run", ids=prompt, new_tokens=plan.new_tokens))
    progress(what, plan.rounds, plan.rounds)


def warm_up(contestant: Contestant, ids: Sequence[int], plan: Plan) -> None:
    """Let it run once untimed; the first time also compiles and is what is reported."""
    seconds = contestant.worker.call(
        "warm_up", ids=list(ids[: plan.prompt_tokens]), new_tokens=plan.new_tokens
    )
    contestant.warmup_seconds = contestant.warmup_seconds or seconds


def windows(ids: Sequence[int], plan: Plan) -> list[list[int]]:
    """Cut a text into windows; the last may be shorter, but something is predicted in each."""
    cut = [list(ids[at : at + plan.window]) for at in range(0, len(ids), plan.window)]
    return [window for window in cut[: plan.windows] if len(window) > 1]


def measure_quality(
    candidate: Contestant,
    baseline: Contestant,
    ids: Sequence[int],
    plan: Plan,
    scratch: Path,
    progress: Progress,
) -> None:
    """Let both predict the same text, a window at a time, and compare.

    Only one window's log-probabilities are ever kept, in a file that the baseline
    writes and the candidate reads. The baseline's own quality is filled in too.
    """
    path = str(scratch / "reference.npy")
    what = f"Comparing {candidate.name} with {baseline.name}"
    cut, followed = _texts(ids, plan)
    pieces = [*((window, 0) for window in cut), (followed, plan.decode_prompt)]
    found: dict[str, list[list[float]]] = {}
    for done, (window, prompt) in enumerate(pieces):
        progress(what, done, len(pieces))
        given = {"ids": window, "path": path, "prompt": prompt}
        reference = baseline.worker.call("write_reference", **given)
        predicted = candidate.worker.call("compare", **given)
        for name, values in {**predicted, "reference": reference}.items():
            found.setdefault(name, []).append(values)
    progress(what, len(pieces), len(pieces))
    whole = {name: values[:-1] for name, values in found.items()}
    decoded = {name: values[-1:] for name, values in found.items()}
    candidate.quality = quality.compared(whole, decoded, seed=plan.seed)
    baseline.quality = quality.alone(whole["reference"], decoded["reference"])


def measure_quality_alone(
    baseline: Contestant, ids: Sequence[int], plan: Plan, progress: Progress
) -> None:
    """Let it predict the text that candidates would be compared on; nothing is written."""
    what = f"Reading the text with {baseline.name}"
    cut, followed = _texts(ids, plan)
    whole = []
    for done, window in enumerate(cut):
        progress(what, done, len(cut) + 1)
        whole.append(baseline.worker.call("write_reference", ids=window, path=None))
    progress(what, len(cut), len(cut) + 1)
    decoded = baseline.worker.call(
        "write_reference", ids=followed, path=None, prompt=plan.decode_prompt
    )
    progress(what, len(cut) + 1, len(cut) + 1)
    baseline.quality = quality.alone(whole, [decoded])


def compare_layers(
    candidate: Contestant, baseline: Contestant, ids: Sequence[int], plan: Plan, scratch: Path
) -> None:
    """Find out after which layers the candidate diverges, or why that cannot be told.

    It decides nothing: what it cannot do is a reason in the report, and not an error.
    """
    path = str(scratch / "layers.npz")
    window = list(ids[: plan.lens_tokens])
    try:
        missing = candidate.worker.call("write_layers", ids=window, path=path)
        if not missing:
            found = baseline.worker.call("compare_layers", ids=window, path=path)
            missing = found["missing"]
    except WorkerError as error:
        missing = str(error)
    if missing:
        candidate.layers_missing = missing
        return
    errors = [mean_with_error(blocks([tokens])) for tokens in found["kl"]]
    candidate.layers = [
        LayerDivergence(layer=layer, kl_mean=mean, kl_mean_error=error)
        for layer, (mean, error) in enumerate(errors, start=1)
    ]


def _texts(ids: Sequence[int], plan: Plan) -> tuple[list[list[int]], list[int]]:
    """Return the windows that are read whole, and the text that is followed token by token."""
    cut = windows(ids, plan)
    return cut, cut[0][: plan.decode_tokens]
