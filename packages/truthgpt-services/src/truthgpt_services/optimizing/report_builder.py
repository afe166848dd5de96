"""What a run has found out so far, and the report that is made of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from truthgpt_core.sources import ResolvedModel
from truthgpt_services.measuring import compare
from truthgpt_services.measuring.compare import windows
from truthgpt_services.measuring.protocol import BuiltStep, Converted
from truthgpt_services.measuring.speed import DECODE, PREFILL
from truthgpt_services.measuring.text import EvaluationText
from truthgpt_services.optimizing.candidates import MadeVariant, RequestedStep
from truthgpt_services.optimizing.comparisons import Comparison
from truthgpt_services.optimizing.request import OptimizeFile
from truthgpt_services.optimizing.reuse import marked
from truthgpt_services.optimizing.summary import summary
from truthgpt_services.optimizing.trials import SAMPLE_PROMPT, Trials
from truthgpt_services.results.schema import (
    Control,
    Load,
    Machine,
    Outcome,
    Replay,
    Report,
    Result,
    Settings,
    Source,
    Step,
    Text,
    Variant,
)
from truthgpt_services.results.statistics import CONFIDENCE


class ReportBuilder:
    """Collects steps and variants, and puts them together.

    Args:
        request: what was asked for.
        resolved: the model.
        text: that quality is measured on.
        trials: what has been measured.

    Attributes:
        machine: where it is measured.
        versions: of what takes part.
        variants: that were measured, without the baseline.
        steps: that were tried, in their order.
        notes: what a step noted while the model ran, by what that is about.
        on_torch: the baseline on PyTorch, if another engine runs it and it was measured.
        replay: what the predictions of the result were recorded on.
        replay_missing: why they were not, if that went wrong.
    """

    machine: Machine
    versions: dict[str, str]

    def __init__(
        self,
        request: OptimizeFile,
        resolved: ResolvedModel,
        text: EvaluationText,
        trials: Trials,
    ) -> None:
        self._request = request
        self._plan = request.plan
        self._resolved = resolved
        self._text = text
        self._trials = trials
        self.variants: list[Variant] = []
        self.steps: list[Step] = []
        self.notes: dict[str, dict[str, str]] = {}
        self.on_torch: MadeVariant | None = None
        self.replay: Replay | None = None
        self.replay_missing = ""

    def begin(self, found: Converted) -> None:
        """Take what the baseline's worker said of the machine and the model."""
        self.machine = found.machine
        self.versions = found.versions
        self._architecture = found.architecture

    def variant(self, made: MadeVariant) -> Variant:
        """Return a variant as the report has it."""
        return Variant(
            name=made.name,
            steps=[each.name for each in made.steps],
            measured=self._trials.measurements(made),
            decode_ratio=self._trials.ratio(made, self._trials.baseline, DECODE),
            prefill_ratio=self._trials.ratio(made, self._trials.baseline, PREFILL),
            layers=made.contestant.layers,
            layers_missing=made.contestant.layers_missing,
        )

    def note(self, step: RequestedStep, outcome: Outcome, reason: str, **found: Any) -> None:
        """Add a step.

        Args:
            step: that was asked for.
            outcome: what became of it.
            reason: why.
            found: other fields of `Step`, as far as they are known.
        """
        unknown: dict[str, Any] = {
            "options": step.options,
            "seconds": 0.0,
            "coverage": None,
            "notes": [],
            "variant": None,
            "against": None,
            "decode_ratio": None,
            "prefill_ratio": None,
        }
        self.steps.append(
            Step(
                name=step.name,
                distribution=step.distribution,
                outcome=outcome,
                reason=reason,
                **(unknown | found),
            )
        )

    def note_built(
        self, step: RequestedStep, outcome: Outcome, reason: str, built: BuiltStep, **found: Any
    ) -> None:
        """Add a step that was made, with what its worker said of it; see `note`."""
        self.note(
            step,
            outcome,
            reason,
            options=built.settings,
            seconds=built.seconds,
            coverage=built.coverage,
            notes=built.notes,
            choices=built.choices,
            **found,
        )

    def take_over(self, found: Comparison) -> None:
        """Add a step that an earlier run has measured."""
        self.variants.append(found.variant)
        self.steps.append(marked(found))
        self.notes[found.step.name] = dict(found.notes)

    def collect_notes(self, made: MadeVariant, steps: Iterable[RequestedStep]) -> None:
        """Take over what steps of a variant have noted while it ran."""
        names = {step.name for step in steps}
        for note in made.contestant.worker.notes():
            if note.optimization in names:
                self.notes.setdefault(note.optimization, {})[note.about] = note.text

    def report(self, command: Sequence[str], result: MadeVariant, load: Load) -> Report:
        """Put the report together.

        Args:
            command: the command line.
            result: the variant that all accepted steps made.
            load: what other programs did meanwhile.
        """
        plan, ids = self._plan, self._trials.ids
        baseline = self._trials.baseline.contestant
        steps = [
            step.model_copy(
                update={"notes": [*step.notes, *self.notes.get(step.name, {}).values()]}
            )
            for step in self.steps
        ]
        measured = [self._trials.baseline, *([self.on_torch] if self.on_torch else [])]
        variants = [*map(self.variant, measured), *self.variants]
        return Report(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=list(command),
            seed=plan.seed,
            sample_prompt=SAMPLE_PROMPT,
            machine=self.machine,
            versions=self.versions,
            source=Source(
                spec=self._resolved.spec,
                kind=self._resolved.kind,
                file_bytes=self._resolved.file_bytes,
                architecture=self._architecture,
                parameters=baseline.opened.parameters,
                dtype=baseline.opened.dtype,
                dtype_is_native=self._request.dtype == "auto",
            ),
            text=Text(
                name=self._text.name,
                sha256=self._text.sha256,
                tokens=sum(len(each) - 1 for each in windows(ids, plan)),
                window=plan.window,
                decode_tokens=min(len(ids), plan.decode_tokens) - plan.decode_prompt,
            ),
            settings=Settings(
                rounds=plan.rounds,
                prompt_tokens=min(len(ids), plan.prompt_tokens),
                new_tokens=plan.new_tokens,
                confidence=CONFIDENCE,
                gate=self._request.gate,
                launches=plan.launches,
                max_launches=plan.looks[-1],
                closely=plan.closely,
            ),
            variants=variants,
            steps=steps,
            result=Result(
                variant=result.name,
                steps=[each.name for each in result.steps],
                summary=summary(
                    variants,
                    steps,
                    result.name,
                    file_bytes=self._resolved.file_bytes,
                    closely=plan.closely,
                ),
            ),
            control=self._control(),
            load=load,
            replay=self.replay,
            replay_missing=self.replay_missing,
        )

    def _control(self) -> Control | None:
        """Return the baseline against itself, over all launches of the run."""
        control, baseline = self._trials.control, self._trials.baseline.contestant
        if control is None:
            return None
        decode, prefill = (
            compare.ratio(control, baseline, quantity, self._plan) for quantity in (DECODE, PREFILL)
        )
        return Control(decode_ratio=decode, prefill_ratio=prefill)
