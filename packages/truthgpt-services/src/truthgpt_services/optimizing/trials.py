"""Measuring models: one alone, and a candidate beside what it is compared with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from truthgpt_services.measuring import compare
from truthgpt_services.measuring.compare import Contestant
from truthgpt_services.measuring.protocol import Recorded
from truthgpt_services.measuring.speed import METRICS, undecided
from truthgpt_services.optimizing import phases
from truthgpt_services.optimizing.candidates import MadeVariant
from truthgpt_services.optimizing.comparisons import Comparison
from truthgpt_services.optimizing.gate import bytes_held, pays_by_size
from truthgpt_services.optimizing.model_maker import ModelMaker
from truthgpt_services.optimizing.request import OptimizeFile
from truthgpt_services.optimizing.reuse import earlier_launches
from truthgpt_services.optimizing.schedule import Phase, Schedule
from truthgpt_services.optimizing.timing import Timing
from truthgpt_services.results.schema import Measurements, Ratio

TORCH = "torch"
"""The name of PyTorch's engine."""

SAMPLE_PROMPT = "The future of AI is"
_WEIGHT_FILES = "*.safetensors"


class Trials:
    """Measures the models of one run.

    Args:
        request: what to measure, and how closely.
        models: where workers come from.
        scratch: a directory for what workers tell each other.
        progress: told about work that takes seconds.

    Attributes:
        baseline: the model that everything starts from, once it is there.
        control: the baseline once more, with all its launches, if it took part.
        ids: the tokens of the text that quality is measured on.
        timing: the launches of all models.
    """

    baseline: MadeVariant

    def __init__(
        self, request: OptimizeFile, models: ModelMaker, scratch: Path, progress: Schedule
    ) -> None:
        self._request = request
        self._plan = request.plan
        self._models = models
        self._scratch = scratch
        self._progress = progress
        self.control: Contestant | None = None
        self.ids: list[int] = []
        self.timing = Timing(request.plan, models, progress)

    @property
    def sequence_tokens(self) -> int:
        """Tokens of the sequences that are timed, of prompt and answer."""
        return min(len(self.ids), self._plan.prompt_tokens) + self._plan.new_tokens

    def warm_up(self, contestant: Contestant, *, first_use: bool = False) -> None:
        """Let a model run untimed, and write a sample."""
        slow = ": a first use that compiles can take minutes" if first_use else ""
        self._progress(f"Warming up {contestant.name}{slow}", 0, 0)
        compare.warm_up(contestant, self.ids, self._plan)
        contestant.sample = contestant.worker.sample(SAMPLE_PROMPT, self._plan.sample_tokens)

    def metrics(self, contestant: Contestant) -> None:
        """Measure what metrics of plugins measure."""
        metrics = self._request.metrics
        compare.measure_metrics(contestant, metrics, self.ids, self._plan, self._progress)

    def quality(self, candidate: Contestant) -> None:
        """Compare a candidate's predictions with the baseline's, and after which layers they part.

        The baseline's own quality is filled in too.
        """
        baseline = self.baseline.contestant
        compare.measure_quality(
            candidate, baseline, self.ids, self._plan, self._scratch, self._progress
        )
        self.metrics(candidate)
        compare.compare_layers(candidate, baseline, self.ids, self._plan, self._scratch)

    def alone(self) -> None:
        """Measure the baseline, if it has taken part in no comparison."""
        baseline = self.baseline.contestant
        if not baseline.launches:
            compare.measure_quality_alone(baseline, self.ids, self._plan, self._progress)
            self.timing.until([baseline], self.ids, lambda launches: launches in self._plan.looks)

    def on_torch(self) -> MadeVariant | None:
        """Measure the baseline on PyTorch, too, where another engine runs it; one launch has to do.

        Returns:
            It; None if it runs on PyTorch, an engine was asked for, or little is measured anyway.
        """
        baseline = self.baseline.contestant
        if self._request.engine or not self._plan.closely or baseline.opened.engine == TORCH:
            return None
        twin = self._models.open_twin(baseline, f"{baseline.name} on {TORCH}", TORCH)
        self.warm_up(twin)
        compare.measure_quality(twin, baseline, self.ids, self._plan, self._scratch, self._progress)
        self.metrics(twin)
        self.timing.until([baseline, twin], self.ids, lambda launches: True)
        twin.worker.end(at_once=True)
        return MadeVariant(twin)

    def record(self, made: MadeVariant) -> Recorded:
        """Record what a variant predicts of the text.

        Raises:
            ModelError: its predictions are not finite.
            WorkerError: it could not predict them.
        """
        if made.cold:
            self._models.open_again(made)
        return made.contestant.worker.record(self.ids[: self._plan.replay_tokens])

    def speed(self, made: MadeVariant, before: MadeVariant, later: Iterable[Phase]) -> None:
        """Time a candidate beside what it is compared with, until that decides about it.

        Args:
            made: the candidate.
            before: what has been accepted so far.
            later: what comes after it.
        """
        baseline, candidate = self.baseline.contestant, made.contestant
        if before.cold:
            self._models.open_again(before)
            self.warm_up(before.contestant)
        contestants = [baseline, candidate]
        if before is not self.baseline:
            contestants.insert(1, before.contestant)
        control = self.timing.control(baseline, self.ids)
        if control is not None:
            # One and the same for the whole run, in new processes for each step.
            if self.control is not None:
                control.launches = self.control.launches
            self.control = control
            contestants.insert(1, control)
        held = bytes_held(candidate.opened, before.contestant.opened, self.sequence_tokens)
        smaller = pays_by_size(*held, self._request.gate)

        def enough(launches: int) -> bool:
            if launches not in self._plan.looks:
                return False
            ratios = [self.ratio(made, before, quantity) for quantity in METRICS]
            return not self._plan.closely or not undecided(
                ratios, self._request.gate, smaller=smaller
            )

        names = [each.name for each in contestants]
        self._progress.expect([phases.timing(names, self._plan), *later])
        self.timing.until(contestants, self.ids, enough)
        if control is not None:
            control.worker.end(at_once=True)

    def took_turns(self, before: MadeVariant, made: MadeVariant | None) -> list[Contestant]:
        """Return who takes part in a comparison, the baseline first, each of them once."""
        found = [self.baseline.contestant]
        found += [self.control] if self.control is not None else []
        found += [before.contestant] if before is not self.baseline else []
        return [*found, made.contestant] if made is not None else found

    def take_over(self, found: Comparison, before: MadeVariant, made: MadeVariant | None) -> None:
        """Take what an earlier run has measured as if it were of this one.

        Args:
            found: the comparison.
            before: what the candidate was compared with.
            made: the candidate, if it was accepted.
        """
        baseline = self.baseline.contestant
        baseline.quality = found.baseline
        if "control" in found.launches and self.control is None:
            self.control = replace(baseline, name="control", launches={})
        took_turns = self.took_turns(before, made)
        self.timing.take_over(took_turns, earlier_launches(found))
        for each in took_turns:
            each.peak = max(each.peak, found.peaks.get(each.name, 0))

    def ratio(self, made: MadeVariant, against: MadeVariant, quantity: str) -> Ratio:
        """Return a ratio of speeds, whose interval is no narrower than the control's."""
        noise = []
        if self.control is not None and made is not against:
            shared = {
                number: launch
                for number, launch in self.control.launches.items()
                if number in made.contestant.launches
            }
            control = replace(self.control, launches=shared)
            noise = control.log_ratios(self.baseline.contestant, quantity)
        return compare.ratio(made.contestant, against.contestant, quantity, self._plan, noise)

    def measurements(self, made: MadeVariant) -> Measurements:
        """Return all that was measured of a variant."""
        files = made.directory.glob(_WEIGHT_FILES) if made.directory else ()
        return made.contestant.measurements(
            self._plan,
            prompt_tokens=min(len(self.ids), self._plan.prompt_tokens),
            saved_bytes=sum(file.stat().st_size for file in files),
            build_peak=made.build_peak,
        )
