"""What a run has found out so far, and the report that is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from truthgpt_core.sources import ResolvedModel
from truthgpt_services.measuring import compare
from truthgpt_services.measuring.compare import Contestant, windows
from truthgpt_services.measuring.protocol import Converted
from truthgpt_services.measuring.speed import DECODE, PREFILL
from truthgpt_services.measuring.text import EvaluationText
from truthgpt_services.optimizing.candidates import AskedStep, MadeVariant
from truthgpt_services.optimizing.request import OptimizeFile
from truthgpt_services.optimizing.summary import summary
from truthgpt_services.results.schema import (
    Control,
    Load,
    Machine,
    Measurements,
    Outcome,
    Ratio,
    Report,
    Result,
    Settings,
    Source,
    Step,
    Text,
    Variant,
)
from truthgpt_services.results.statistics import CONFIDENCE

SAMPLE_PROMPT = "The future of AI is"
WEIGHT_FILES = "*.safetensors"


class ReportBuilder:
    """Collects steps and variants, and puts them together.

    Args:
        request: what was asked for.
        resolved: the model.
        text: that quality is measured on.

    Attributes:
        machine: where it is measured.
        versions: of what takes part.
        control: the baseline once more, with all its launches, if it took part.
        variants: that were measured, without the baseline.
        steps: that were tried, in their order.
        notes: what a step noted while the model ran, by what that is about.
    """

    machine: Machine
    versions: dict[str, str]

    def __init__(
        self, request: OptimizeFile, resolved: ResolvedModel, text: EvaluationText
    ) -> None:
        self._request = request
        self._plan = request.plan
        self._resolved = resolved
        self._text = text
        self.control: Contestant | None = None
        self.variants: list[Variant] = []
        self.steps: list[Step] = []
        self.notes: dict[str, dict[str, str]] = {}

    def begin(self, found: Converted, baseline: MadeVariant, ids: Sequence[int]) -> None:
        """Take what is known when the baseline has been loaded.

        Args:
            found: what its worker said of the machine and the model.
            baseline: the model that everything starts from.
            ids: the tokens of the text.
        """
        self.machine = found.machine
        self.versions = found.versions
        self._architecture = found.architecture
        self._baseline = baseline
        self._ids = ids

    def ratio(self, made: MadeVariant, against: MadeVariant, quantity: str) -> Ratio:
        """Return a ratio of speeds, whose interval is no narrower than the control's."""
        noise = []
        if self.control is not None and made is not against:
            shared = {
                number: launch
                for number, launch in self.control.launches.items()
                if number in made.contestant.launches
            }
            noise = replace(self.control, launches=shared).log_ratios(
                self._baseline.contestant, quantity
            )
        return compare.ratio(made.contestant, against.contestant, quantity, self._plan, noise)

    def measurements(self, made: MadeVariant) -> Measurements:
        """Return all that was measured of a variant."""
        saved = sum(
            file.stat().st_size
            for file in (made.directory.glob(WEIGHT_FILES) if made.directory else ())
        )
        return made.contestant.measurements(
            self._plan,
            prompt_tokens=min(len(self._ids), self._plan.prompt_tokens),
            saved_bytes=saved,
            build_peak=made.build_peak,
        )

    def variant(self, made: MadeVariant) -> Variant:
        """Return a variant as the report has it."""
        return Variant(
            name=made.name,
            steps=[each.name for each in made.steps],
            measured=self.measurements(made),
            decode_ratio=self.ratio(made, self._baseline, DECODE),
            prefill_ratio=self.ratio(made, self._baseline, PREFILL),
            layers=made.contestant.layers,
            layers_missing=made.contestant.layers_missing,
        )

    def note(self, step: AskedStep, outcome: Outcome, reason: str, **found: Any) -> None:
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

    def report(self, command: Sequence[str], result: MadeVariant, load: Load) -> Report:
        """Put the report together.

        Args:
            command: the command line.
            result: the variant that all accepted steps made.
            load: what other programs did meanwhile.
        """
        plan, baseline = self._plan, self._baseline.contestant
        steps = [
            step.model_copy(
                update={"notes": [*step.notes, *self.notes.get(step.name, {}).values()]}
            )
            for step in self.steps
        ]
        variants = [self.variant(self._baseline), *self.variants]
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
                tokens=sum(len(each) - 1 for each in windows(self._ids, plan)),
                window=plan.window,
                decode_tokens=min(len(self._ids), plan.decode_tokens) - plan.decode_prompt,
            ),
            settings=Settings(
                rounds=plan.rounds,
                prompt_tokens=min(len(self._ids), plan.prompt_tokens),
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
        )

    def _control(self) -> Control | None:
        """Return the baseline against itself, over all launches of the run."""
        if self.control is None:
            return None
        decode, prefill = (
            compare.ratio(self.control, self._baseline.contestant, quantity, self._plan)
            for quantity in (DECODE, PREFILL)
        )
        return Control(decode_ratio=decode, prefill_ratio=prefill)
