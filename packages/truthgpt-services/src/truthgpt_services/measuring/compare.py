"""Measuring a candidate beside what it is compared with, taking turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from truthgpt_core.optimization import Progress
from truthgpt_services.errors import WorkerError
from truthgpt_services.measuring import quality
from truthgpt_services.measuring.client import WorkerProcess
from truthgpt_services.measuring.protocol import Opened
from truthgpt_services.measuring.speed import (
    Launch,
    Plan,
    log_ratio,
    ratio_of_launches,
)
from truthgpt_services.results.schema import (
    LayerDivergence,
    Measurements,
    MetricValue,
    Quality,
    Ratio,
    Samples,
)
from truthgpt_services.results.statistics import (
    blocks,
    interval_of_speeds,
    mean_with_error,
)


@dataclass
class Contestant:
    """A model in a worker process, and what has been measured of it so far.

    Attributes:
        name: of the variant.
        worker: the process that holds it now.
        opened: what the first process said of it.
        directory: where it is loaded from.
        dtype: that it is loaded in; None for that of a saved model.
        engine: that runs it; None for the first that can.
        warmup_seconds: of the first process.
        launches: what each process has measured, by the number of the launch in this run.
        peak: highest memory of any process, in bytes.
        metrics: what metrics of plugins have measured.
    """

    name: str
    worker: WorkerProcess
    opened: Opened
    directory: str = ""
    dtype: str | None = None
    engine: str | None = None
    warmup_seconds: float = 0.0
    launches: dict[int, Launch] = field(default_factory=dict)
    peak: int = 0
    quality: Quality | None = None
    layers: list[LayerDivergence] | None = None
    layers_missing: str = ""
    sample: str = ""
    metrics: list[MetricValue] = field(default_factory=list)

    def log_ratios(self, reference: Contestant, quantity: str) -> list[float]:
        """Return `log_ratio` of each launch in which both took turns."""
        return [
            log_ratio(launch, reference.launches[number], quantity)
            for number, launch in self.launches.items()
            if number in reference.launches
        ]

    def measurements(
        self, plan: Plan, *, prompt_tokens: int, saved_bytes: int, build_peak: int
    ) -> Measurements:
        """All that was measured, once quality was.

        Speeds have a value for each round, as a user would see it, and not for each turn.
        """
        assert self.quality is not None
        first = [
            [median(each) for each in _by_round(launch.prompts, plan.prompts)]
            for launch in self.launches.values()
        ]
        decode = [
            [(plan.new_tokens - 1) / sum(each) for each in _by_round(launch.slices, turns)]
            for launch in self.launches.values()
            for turns in [len(plan.slices)]
        ]
        prefill = [[prompt_tokens / seconds for seconds in launch] for launch in first]
        return Measurements(
            engine=self.opened.engine,
            load_seconds=self.opened.load_seconds,
            warmup_seconds=self.warmup_seconds,
            decode_tokens_per_second=_samples(decode, plan),
            prefill_tokens_per_second=_samples(prefill, plan),
            first_token_seconds=_samples(first, plan),
            weights_bytes=self.opened.weights_bytes,
            saved_bytes=saved_bytes,
            peak_memory_bytes=self.peak,
            build_peak_memory_bytes=build_peak,
            quality=self.quality,
            sample=self.sample,
            metrics=self.metrics,
            cache_bytes_per_token=self.opened.cache_bytes_per_token,
        )


def ratio(
    candidate: Contestant,
    reference: Contestant,
    quantity: str,
    plan: Plan,
    noise: Sequence[float] = (),
) -> Ratio:
    """Return candidate / reference over the launches in which both took turns.

    Args:
        candidate: whose speed is the numerator.
        reference: whose speed is the denominator.
        quantity: one of `speed.METRICS`.
        plan: how it was measured.
        noise: what `log_ratios` of the control and the baseline are.
    """
    return ratio_of_launches(candidate.log_ratios(reference, quantity), noise, plan)


def take_turns(
    contestants: Sequence[Contestant],
    ids: Sequence[int],
    plan: Plan,
    progress: Progress,
    *,
    launch: int = 0,
) -> None:
    """Time all in one launch, a prompt or a few tokens each; who begins changes every turn.

    Args:
        contestants: whose workers hold their models, and are warm.
        ids: a text that the prompt is cut from.
        plan: how much.
        progress: told of each round.
        launch: the number of this launch.
    """
    what = "Timing " + ", ".join(each.name for each in contestants)
    prompt = list(ids[: plan.prompt_tokens])
    for each in contestants:
        each.launches[launch] = Launch()
    turn = 0

    def in_turn() -> list[Contestant]:
        nonlocal turn
        begin = turn % len(contestants)
        turn += 1
        return [*contestants[begin:], *contestants[:begin]]

    for done in range(plan.rounds):
        progress(what, done, plan.rounds)
        for _ in range(plan.prompts):
            for each in in_turn():
                seconds = each.worker.read_prompt(prompt, plan.new_tokens)
                each.launches[launch].prompts.append(seconds)
        for tokens in plan.slices:
            for each in in_turn():
                each.launches[launch].slices.append(each.worker.decode(tokens))
    progress(what, plan.rounds, plan.rounds)
    for each in contestants:
        each.peak = max(each.peak, each.worker.peak_memory())


def warm_up(contestant: Contestant, ids: Sequence[int], plan: Plan) -> None:
    """Let it run once untimed; the first time also compiles and is what is reported."""
    seconds = contestant.worker.warm_up(list(ids[: plan.prompt_tokens]), plan.new_tokens)
    contestant.warmup_seconds = contestant.warmup_seconds or seconds


def _by_round(turns: Sequence[float], count: int) -> list[Sequence[float]]:
    """Cut what was measured in turns into rounds of so many."""
    return [turns[at : at + count] for at in range(0, len(turns), count)]


def _samples(launches: Sequence[Sequence[float]], plan: Plan) -> Samples:
    middle, low, high = interval_of_speeds(launches, seed=plan.seed)
    return Samples(
        median=middle,
        low=low,
        high=high,
        values=[value for launch in launches for value in launch],
        launches=[len(launch) for launch in launches],
    )


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
        reference = baseline.worker.write_reference(window, path, prompt)
        predicted = candidate.worker.compare(window, path, prompt)
        for name, values in {**vars(predicted), "reference": reference}.items():
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
        whole.append(baseline.worker.write_reference(window, None))
    progress(what, len(cut), len(cut) + 1)
    decoded = baseline.worker.write_reference(followed, None, plan.decode_prompt)
    progress(what, len(cut) + 1, len(cut) + 1)
    baseline.quality = quality.alone(whole, [decoded])


def measure_metrics(
    contestant: Contestant,
    metrics: Sequence[str],
    ids: Sequence[int],
    plan: Plan,
    progress: Progress,
) -> None:
    """Measure it with metrics of plugins, on the windows that its quality is measured on."""
    for done, name in enumerate(metrics):
        progress(f"Measuring {contestant.name}: {name}", done, len(metrics))
        contestant.metrics += contestant.worker.measure(name, windows(ids, plan), plan.seed)


def compare_layers(
    candidate: Contestant, baseline: Contestant, ids: Sequence[int], plan: Plan, scratch: Path
) -> None:
    """Find out after which layers the candidate diverges, or why that cannot be told.

    It decides nothing: what it cannot do is a reason in the report, and not an error.
    """
    path = str(scratch / "layers.npz")
    window = list(ids[: plan.lens_tokens])
    try:
        missing = candidate.worker.write_layers(window, path)
        if not missing:
            found = baseline.worker.compare_layers(window, path)
            missing = found.missing
    except WorkerError as error:
        missing = str(error)
    if missing:
        candidate.layers_missing = missing
        return
    errors = [mean_with_error(blocks([tokens])) for tokens in found.kl]
    candidate.layers = [
        LayerDivergence(layer=layer, kl_mean=mean, kl_mean_error=error)
        for layer, (mean, error) in enumerate(errors, start=1)
    ]


def _texts(ids: Sequence[int], plan: Plan) -> tuple[list[list[int]], list[int]]:
    """Return the windows that are read whole, and the text that is followed token by token."""
    cut = windows(ids, plan)
    return cut, list(ids[: plan.decode_tokens])
