"""What a run takes over from an earlier one of the same command that was interrupted."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from truthgpt_core.optimization import Optimization
from truthgpt_services.formatting import moment
from truthgpt_services.measuring.compare import Contestant
from truthgpt_services.measuring.speed import Launch
from truthgpt_services.optimizing.candidates import MadeVariant, RequestedStep
from truthgpt_services.optimizing.comparisons import (
    Comparison,
    Comparisons,
    Turns,
    digest,
    environment,
    identity,
    sources,
)
from truthgpt_services.optimizing.model_maker import ModelMaker
from truthgpt_services.optimizing.request import OptimizeFile
from truthgpt_services.results.schema import Load, Machine, Outcome, Step, Variant

_OURS = ("truthgpt_core", "truthgpt_services")


def depends_on(
    request: OptimizeFile,
    model: Path,
    text: str,
    machine: Machine,
    versions: Mapping[str, str],
    optimizations: Iterable[Optimization[Any]],
) -> dict[str, Any]:
    """Return all that the comparisons of a command depend on, beside their steps.

    Args:
        request: of the command.
        model: its directory.
        text: the SHA-256 of the text.
        machine: where it runs.
        versions: of what takes part.
        optimizations: whose sources are looked at, too.
    """
    modules = {type(each).__module__.partition(".")[0] for each in optimizations}
    return {
        "model": identity(model),
        # Where the result goes changes nothing, nor which of the steps come later.
        "request": request.model_dump(mode="json", exclude={"output", "apply", "step_timeout"}),
        "text": text,
        "machine": machine.model_dump(),
        "versions": dict(versions),
        "installed": _installed(),
        "sources": sources({*_OURS, *modules}),
        "environment": environment(),
    }


def step_depends_on(step: RequestedStep) -> dict[str, Any]:
    """Return all that the comparison of a step depends on, beside what the others do.

    That includes the content of files that its options name, as of a draft model.
    """
    named = [value for _, value in step.optimization.options if isinstance(value, Path)]
    return vars(step.for_worker()) | {"files": [identity(each) for each in named]}


def _installed() -> list[str]:
    # The names of their folders have their versions, whatever is damaged in them.
    folders = [Path(each) for each in sys.path if each]
    return sorted({path.name for folder in folders for path in folder.glob("*.dist-info")})


def finished(
    key: str,
    step: Step,
    variant: Variant,
    took_turns: Sequence[Contestant],
    first: int,
    notes: Mapping[str, str],
    directory: Path,
    load: Load,
) -> Comparison:
    """Put a finished comparison together.

    Args:
        key: that it will be looked for under.
        step: that was judged.
        variant: the model with it.
        took_turns: the baseline first.
        first: the number of the first launch that was for this comparison.
        notes: what the step noted.
        directory: of the variant.
        load: what other programs did.
    """
    baseline = took_turns[0].quality
    assert baseline is not None
    return Comparison(
        key=key,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        step=step,
        variant=variant,
        baseline=baseline,
        launches={
            each.name: [
                Turns(**asdict(launch)) for at, launch in each.launches.items() if at >= first
            ]
            for each in took_turns
        },
        peaks={each.name: each.peak for each in took_turns},
        notes=dict(notes),
        weights=digest(directory) if step.outcome is Outcome.ACCEPTED else "",
        load=load,
    )


def earlier_launches(found: Comparison) -> dict[str, list[Launch]]:
    """Return what each process has measured, by the name of its model."""
    return {
        name: [Launch(each.prompts, each.slices) for each in launches]
        for name, launches in found.launches.items()
    }


def marked(found: Comparison) -> Step:
    """Return the step with the day it was measured on, and how busy the machine was then."""
    sentences = [found.step.reason, f"Measured in an earlier run, on {moment(found.created)}."]
    if found.load.warning:
        sentences.append(found.load.warning)
    return found.step.model_copy(update={"reason": " ".join(sentences), "reused": found.created})


class EarlierRun:
    """What an earlier run of the same command has finished before it was cut short.

    Args:
        given: all that the comparisons of the command depend on; see `depends_on`.
        models: makes the models of accepted steps again.
    """

    def __init__(self, given: Mapping[str, Any], models: ModelMaker) -> None:
        self._comparisons = Comparisons(given)
        self._models = models

    def find(self, name: str, steps: Sequence[RequestedStep]) -> Comparison | None:
        """Return the comparison of a model with these steps, if it was finished there.

        Args:
            name: of the variant.
            steps: of the variant, the last one to be judged.
        """
        found = self._comparisons.get(self._key(steps))
        if found is None or (found.step.name, found.variant.name) != (steps[-1].name, name):
            return None
        return found

    def made_again(
        self, found: Comparison, steps: list[RequestedStep], baseline: MadeVariant
    ) -> MadeVariant | None:
        """Make the files of a variant again; None if they are not those that were measured."""
        name, measured = found.variant.name, found.variant.measured
        directory = self._models.new_directory()
        self._models.build(name, steps, directory)
        if digest(directory) != found.weights:
            shutil.rmtree(directory)
            return None
        contestant = Contestant(
            name,
            self._models.start(name),
            replace(
                baseline.contestant.opened,
                engine=measured.engine,
                load_seconds=measured.load_seconds,
                weights_bytes=measured.weights_bytes,
                cache_bytes_per_token=measured.cache_bytes_per_token,
            ),
            str(directory),
            warmup_seconds=measured.warmup_seconds,
            quality=measured.quality,
            layers=found.variant.layers,
            layers_missing=found.variant.layers_missing,
            sample=measured.sample,
            metrics=measured.metrics,
        )
        peak = measured.build_peak_memory_bytes
        return MadeVariant(contestant, steps, directory, peak, cold=True)

    def remember(
        self,
        step: Step,
        variant: Variant,
        made: MadeVariant,
        took_turns: Sequence[Contestant],
        *,
        first: int,
        notes: Mapping[str, str],
        load: Load,
    ) -> None:
        """Let a later run of the same command take over what was measured.

        Args:
            step: what became of the step.
            variant: the model with it, as the report has it.
            made: the model with it.
            took_turns: the baseline first.
            first: the number of the first launch that was for this comparison.
            notes: what the step noted while the model ran.
            load: what other programs did.
        """
        assert made.directory is not None
        key = self._key(made.steps)
        self._comparisons.put(
            finished(key, step, variant, took_turns, first, notes, made.directory, load)
        )

    def forget(self) -> None:
        """Let the same command measure again: its run has come to its end."""
        self._comparisons.forget()

    def _key(self, steps: Sequence[RequestedStep]) -> str:
        return self._comparisons.key([step_depends_on(each) for each in steps])
