"""The main job: apply optimizations one after the other, measure each, accept what pays.

This process only orchestrates and never imports torch. Each model that takes part
is in a worker process of its own: the baseline, the same once more as a control, what has
been accepted so far, and the candidate. A candidate is always made from the source with the
steps accepted so far and the new one, saved, and measured as it was saved: a step that is
rejected leaves nothing behind, and what was measured is what the user gets.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from truthgpt_core.event_system import (
    EventEmitter,
    OptimizationFailed,
    OptimizationFinished,
    OptimizationReverted,
    OptimizationSkipped,
)
from truthgpt_core.optimization import (
    Optimization,
    OptimizationError,
    Progress,
    Stage,
    calls,
    in_order,
    refuse_impossible,
)
from truthgpt_core.plugin_system import PluginManager
from truthgpt_core.sources import ResolvedModel
from truthgpt_services.errors import ModelError, WorkerError, refuse_unknown_component
from truthgpt_services.measuring.client import WorkerProcess
from truthgpt_services.measuring.compare import (
    Contestant,
    compare_layers,
    measure_metrics,
    measure_quality,
    measure_quality_alone,
    warm_up,
)
from truthgpt_services.measuring.protocol import Built, BuiltStep
from truthgpt_services.measuring.speed import DECODE, METRICS, PREFILL, Plan, undecided
from truthgpt_services.measuring.text import EvaluationText, evaluation_text
from truthgpt_services.measuring.worker_log import NAME as LOG_NAME
from truthgpt_services.measuring.worker_log import collected, kept_on_failure
from truthgpt_services.models.sources import describe, files_of, resolve
from truthgpt_services.optimizing import phases
from truthgpt_services.optimizing.candidates import AskedStep, MadeVariant
from truthgpt_services.optimizing.comparisons import Comparison, Comparisons, digest
from truthgpt_services.optimizing.criteria import as_measured, objection
from truthgpt_services.optimizing.gate import Effect, break_even, judge, nothing_done, pays_by_size
from truthgpt_services.optimizing.report_builder import SAMPLE_PROMPT, ReportBuilder
from truthgpt_services.optimizing.request import Applying, OptimizeFile
from truthgpt_services.optimizing.reuse import depends_on, earlier_launches, finished, marked
from truthgpt_services.optimizing.schedule import Schedule
from truthgpt_services.optimizing.sections import with_sections
from truthgpt_services.optimizing.timing import Timing
from truthgpt_services.report.costs import costs
from truthgpt_services.report.files import write_report
from truthgpt_services.results.io import report_json
from truthgpt_services.results.schema import Outcome, Report
from truthgpt_services.storage.atomic import StagedDirectory

BASELINE = phases.BASELINE


def optimize(
    request: OptimizeFile,
    plugins: PluginManager,
    *,
    source: ResolvedModel | None = None,
    overwrite: bool = False,
    command: Sequence[str] = (),
    progress: Progress,
    warn: Callable[[str], None] = lambda sentence: None,
) -> Report:
    """Optimize a model, measure what each step does, and accept what pays.

    Args:
        request: what to do; its output is given, and its model, unless `source` is.
        plugins: where optimizations come from.
        source: the model, if it has been found already.
        overwrite: replace the output directory, if it is one that TruthGPT wrote.
        command: the command line, for the report.
        progress: told about work that takes seconds.
        warn: told before any work if the machine is too busy to tell small differences.

    Returns:
        The report, which was also written into the output directory.

    Raises:
        OptimizationError: an optimization is unknown, or its options are wrong.
        ModelError: the model cannot be found or loaded.
        OutputError: the output directory cannot be written.
        WorkerError: the baseline itself could not be measured.
    """
    assert request.output is not None
    plugins.activate_all()
    asked = _in_order(request.apply, plugins)
    for metric in request.metrics:
        refuse_unknown_component("metric", metric, plugins.factories["metric_factory"])
    text = evaluation_text(request.text)
    staged = StagedDirectory(request.output, overwrite=overwrite)
    if source is None:
        assert request.model is not None
        source = resolve(request.model, plugins.factories["model_source_factory"])
    with staged, tempfile.TemporaryDirectory(prefix="truthgpt-") as scratch, ExitStack() as stack:
        stack.enter_context(kept_on_failure(Path(scratch)))
        folder = Path(scratch)
        job = Job(request, source, text, staged.path, folder, stack, plugins, progress)
        if warning := job.timing.meter.look():
            warn(warning)
        job.start([each.optimization for each in asked])
        job.reuse()
        for step in asked:
            job.take(step)
        report = job.report(command)
        job.finish(report)
        write_report(report, staged.path)
        # Ends the workers before what they may still read is moved.
        stack.close()
        (staged.path / LOG_NAME).write_text(collected(Path(scratch)), encoding="utf-8")
        staged.commit()
        job.forget()
    return report


class Job:
    """One run: the models that take part, and what is known of them so far.

    Args:
        request: what to do.
        resolved: the model.
        text: to measure quality on.
        output: a directory for the models that are made, and for the result.
        scratch: a directory for what workers tell each other.
        stack: ends the workers.
        plugins: whose criteria judge steps, and whose listeners hear what becomes of them.
        progress: told about work that takes seconds.

    Attributes:
        timing: the launches of all models.
    """

    def __init__(
        self,
        request: OptimizeFile,
        resolved: ResolvedModel,
        text: EvaluationText,
        output: Path,
        scratch: Path,
        stack: ExitStack,
        plugins: PluginManager,
        progress: Progress,
    ) -> None:
        self._events = plugins.events
        self._hooks = plugins.hooks
        self._request = request
        self._plan: Plan = request.plan
        self._resolved = resolved
        self._text = text
        self._output = output
        self._scratch = scratch
        self._stack = stack
        self._progress = Schedule(progress)
        self._progress.expect(phases.beginning())
        self._comparisons: Comparisons | None = None
        self._found = ReportBuilder(request, resolved, text)
        self.timing = Timing(self._plan, request.device, self._worker, self._progress)

    def start(self, optimizations: Iterable[Optimization[Any]] = ()) -> None:
        """Convert the model if need be, and load the baseline.

        Args:
            optimizations: those to be applied to it.

        Raises:
            OptimizationError: one of them cannot be applied to this model; nothing is loaded then.
        """
        self._to_come = list(optimizations)
        later = phases.of_steps((), self._to_come, self._plan)
        if not self._to_come:
            later = phases.of_evaluation(self._plan)
        self._progress.expect([*phases.beginning(), *later])
        self._progress("Starting the baseline", 0, 0)
        resolved = self._resolved
        files_of(resolved)  # An error before a process is started, not after.
        worker = self._worker(BASELINE)
        found = worker.convert(resolved, self._request.device)
        self._directory = found.directory
        refuse_impossible(self._to_come, describe(Path(self._directory), resolved.spec))
        self._baseline = MadeVariant(self._open(worker, BASELINE, self._directory))
        self._kept = self._baseline
        wanted = self._plan.windows * self._plan.window
        limit = wanted + self._plan.trial_tokens
        ids = worker.tokenize(self._text.text, limit)
        # What steps try the model on is not what they are judged by, if the text is long enough.
        self._ids, self._trial = ids[:wanted], ids[wanted:] or ids
        least = self._plan.decode_prompt + 2
        if len(self._ids) < least:
            raise ModelError(
                f"The text {self._text.name} has {len(self._ids)} tokens, "
                f"and at least {least} are needed"
            )
        self._found.begin(found, self._baseline, self._ids)
        self._warm_up(self._baseline.contestant)
        # First of all models: a metric that cannot work ends the run before anything is made.
        self._measure_metrics(self._baseline.contestant)

    def _measure_metrics(self, contestant: Contestant) -> None:
        metrics = self._request.metrics
        measure_metrics(contestant, metrics, self._ids, self._plan, self._progress)

    def reuse(self) -> None:
        """Take over what an earlier run of the same command has finished and was cut short."""
        given = depends_on(
            self._request,
            Path(self._directory),
            self._text.sha256,
            self._found.machine,
            self._found.versions,
            self._to_come,
        )
        self._comparisons = Comparisons(given)

    def forget(self) -> None:
        """Let the same command measure again: its run has come to its end."""
        if self._comparisons is not None:
            self._comparisons.forget()

    def take(self, step: AskedStep) -> None:
        """Try one step: make the model with it, measure it, accept it or not."""
        accepted = [each.name for each in self._kept.steps]
        self._progress.expect(phases.of_steps(accepted, self._to_come, self._plan))
        self._to_come = self._to_come[1:]
        steps = [*self._kept.steps, step]
        name = " + ".join(each.name for each in steps)
        try:
            verdict = calls.check(step.optimization, self._found.machine.device)
            if not verdict.ok:
                reason = f"{verdict.reason}. {verdict.fix}".strip().rstrip(".") + "."
                self._events.emit(OptimizationSkipped(optimization=step.name, reason=reason))
                self._found.note(step, Outcome.NOT_APPLIED, reason[0].upper() + reason[1:])
            elif not self._take_over(name, step, steps):
                self._try(name, step, steps)
        except (ModelError, OptimizationError, WorkerError) as error:
            # ModelError: what was saved does not load. The baseline was loaded long ago.
            if isinstance(error, WorkerError) and error.worker not in (name, _builder(name)):
                raise
            self._events.emit(OptimizationFailed(optimization=step.name, reason=str(error)))
            self._found.note(step, Outcome.FAILED, str(error))

    def _key(self, steps: Sequence[AskedStep]) -> str:
        assert self._comparisons is not None
        return self._comparisons.key([vars(each.for_worker()) for each in steps])

    def _take_over(self, name: str, step: AskedStep, steps: list[AskedStep]) -> bool:
        """Take a comparison over from an earlier run, if it was finished there."""
        found = self._comparisons and self._comparisons.get(self._key(steps))
        if not found or (found.step.name, found.variant.name) != (step.name, name):
            return False
        accepted = found.step.outcome is Outcome.ACCEPTED
        made = None
        if accepted:
            made = self._made_again(found, steps)
            if made is None:
                return False
        baseline = self._baseline.contestant
        baseline.quality = found.baseline
        if "control" in found.launches and self._found.control is None:
            self._found.control = replace(baseline, name="control", launches={})
        took_turns = [baseline, *([self._found.control] if self._found.control else [])]
        if self._kept is not self._baseline:
            took_turns.append(self._kept.contestant)
        if made is not None:
            took_turns.append(made.contestant)
        self.timing.take_over(took_turns, earlier_launches(found))
        for each in took_turns:
            each.peak = max(each.peak, found.peaks.get(each.name, 0))
        self._found.variants.append(found.variant)
        self._found.steps.append(marked(found))
        self._found.notes[step.name] = dict(found.notes)
        if made is not None:
            self._accept(made)
        _emit_end(self._events, step, accepted, self._found.steps[-1].reason)
        return True

    def _made_again(self, found: Comparison, steps: list[AskedStep]) -> MadeVariant | None:
        """Make the files of a variant again; None if they are not those that were measured."""
        name, measured = found.variant.name, found.variant.measured
        directory = self._new_directory()
        self._build(name, steps, directory)
        if digest(directory) != found.weights:
            shutil.rmtree(directory)
            return None
        contestant = Contestant(
            name,
            self._worker(name),
            replace(
                self._baseline.contestant.opened,
                load_seconds=measured.load_seconds,
                weights_bytes=measured.weights_bytes,
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

    def _accept(self, made: MadeVariant) -> None:
        before, self._kept = self._kept, made
        if before is not self._baseline:
            before.contestant.worker.end()
            assert before.directory is not None
            shutil.rmtree(before.directory)

    def _try(self, name: str, step: AskedStep, steps: list[AskedStep]) -> None:
        # Started first, so that it imports torch while the model is being made.
        worker = self._worker(name)
        directory = self._new_directory()
        made: MadeVariant | None = None
        against, first = self._kept, self.timing.launches
        try:
            built = self._build(name, steps, directory)
            candidate = self._open(worker, name, str(directory))
            made = MadeVariant(candidate, steps, directory, built.peak_memory_bytes)
            compiles = step.optimization.stage is Stage.EXECUTION
            self._warm_up(candidate, first_use=compiles)
            effect = self._effect(made, step, built.steps[-1])
            idle = nothing_done(effect)
            if idle and not self._request.gate.keep_all:
                self._note(step, Outcome.REJECTED, idle, built.steps[-1])
                self._collect_notes(made, [step])
                return
            measure_quality(
                candidate,
                self._baseline.contestant,
                self._ids,
                self._plan,
                self._scratch,
                self._progress,
            )
            self._measure_metrics(candidate)
            compare_layers(
                candidate, self._baseline.contestant, self._ids, self._plan, self._scratch
            )
            self._time(made, step)
            self._judge(step, made, built.steps[-1], effect)
            self._collect_notes(made, [step])
            if self._comparisons is not None:
                took_turns = [self._baseline.contestant, against.contestant, made.contestant]
                took_turns += [self._found.control] if self._found.control is not None else []
                self._comparisons.put(
                    finished(
                        self._key(steps),
                        self._found.steps[-1],
                        self._found.variants[-1],
                        took_turns,
                        first,
                        self._found.notes.get(step.name, {}),
                        directory,
                        self.timing.meter.found(),
                    )
                )
        finally:
            if made is None or self._kept is not made:
                (worker if made is None else made.contestant.worker).end(at_once=True)
                shutil.rmtree(directory, ignore_errors=True)

    def _effect(self, made: MadeVariant, step: AskedStep, built: BuiltStep) -> Effect:
        """Say what a step did; a prompt and tokens like those that are timed have been computed."""
        stage = step.optimization.stage
        worker = made.contestant.worker
        used = stage is not Stage.EXECUTION or worker.was_used(step.name, built.settings)
        return Effect(stage, built.changed, built.changed_note, used)

    def _time(self, made: MadeVariant, step: AskedStep) -> None:
        """Time a candidate beside what it is compared with, until that decides about it."""
        baseline, candidate = self._baseline.contestant, made.contestant
        if self._kept.cold:
            kept, self._kept.cold = self._kept.contestant, False
            self._open(kept.worker, kept.name, kept.directory)
            self._warm_up(kept)
        contestants = [baseline, candidate]
        if self._kept is not self._baseline:
            contestants.insert(1, self._kept.contestant)
        control = self.timing.control(baseline, self._ids)
        if control is not None:
            # One and the same for the whole job, in new processes for each step.
            if self._found.control is not None:
                control.launches = self._found.control.launches
            self._found.control = control
            contestants.insert(1, control)
        smaller = pays_by_size(
            candidate.opened.weights_bytes,
            self._kept.contestant.opened.weights_bytes,
            self._request.gate,
        )

        def enough(launches: int) -> bool:
            if launches not in self._plan.looks:
                return False
            ratios = [self._found.ratio(made, self._kept, quantity) for quantity in METRICS]
            return not self._plan.closely or not undecided(
                ratios, self._request.gate, smaller=smaller
            )

        names = [each.name for each in contestants]
        accepted = [each.name for each in made.steps]
        later = phases.of_steps(accepted, self._to_come, self._plan)
        self._progress.expect([phases.timing(names, self._plan), *later])
        self.timing.until(contestants, self._ids, enough)
        if control is not None:
            control.worker.end(at_once=True)

    def _judge(self, step: AskedStep, made: MadeVariant, built: BuiltStep, effect: Effect) -> None:
        against = self._kept
        measured, before = self._found.measurements(made), self._found.measurements(against)
        decode = self._found.ratio(made, against, DECODE)
        prefill = self._found.ratio(made, against, PREFILL)
        closely = self._plan.closely and len(decode.launches) >= self._plan.launches
        gate = self._request.gate
        objects = objection(
            self._hooks,
            as_measured(made.name, measured),
            as_measured(against.name, before),
            as_measured(BASELINE, self._found.measurements(self._baseline)),
            gate,
        )
        decision = judge(
            measured,
            before,
            decode=decode,
            prefill=prefill,
            gate=gate,
            effect=effect,
            objection=objects,
            closely=closely,
        )
        self._found.variants.append(self._found.variant(made))
        if decision.accepted:
            self._accept(made)
        self._note(
            step,
            decision.outcome,
            decision.reason,
            built,
            variant=made.name,
            against=against.name,
            decode_ratio=decode,
            prefill_ratio=prefill,
            break_even=break_even(measured, before, decode, built.seconds),
            overruled=decision.overruled,
            costs=costs(
                measured,
                before,
                decode=decode,
                prefill=prefill,
                file_bytes=self._resolved.file_bytes,
                closely=closely,
            ),
        )

    def _note(
        self, step: AskedStep, outcome: Outcome, reason: str, built: BuiltStep, **found: Any
    ) -> None:
        """Tell what became of a step that was made."""
        _emit_end(self._events, step, outcome is Outcome.ACCEPTED, reason)
        self._found.note(
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

    def _collect_notes(self, made: MadeVariant, steps: Iterable[AskedStep]) -> None:
        """Take over what steps of a variant have noted while it ran."""
        names = {step.name for step in steps}
        for note in made.contestant.worker.notes():
            if note.optimization in names:
                self._found.notes.setdefault(note.optimization, {})[note.about] = note.text

    def report(self, command: Sequence[str]) -> Report:
        """Everything that was found out."""
        baseline = self._baseline.contestant
        if not baseline.launches:
            # No candidate came as far as being timed; the baseline still is reported.
            measure_quality_alone(baseline, self._ids, self._plan, self._progress)
            self.timing.until([baseline], self._ids, lambda launches: launches in self._plan.looks)
        # Once more: steps before the last may have noted something since they were tried.
        self._collect_notes(self._kept, self._kept.steps)
        report = self._found.report(command, self._kept, self.timing.meter.found())
        return with_sections(report, self._hooks)

    def finish(self, report: Report) -> None:
        """Put the files of the result at the top of the output directory, and complete its card."""
        self._progress("Writing the result", 0, 0)
        directory = self._kept.directory
        if directory is None:
            directory = self._new_directory()
            self._build(BASELINE, [], directory)
        if self._kept.steps:
            self._baseline.contestant.worker.write_card(str(directory), report_json(report))
        for file in directory.iterdir():
            file.rename(self._output / file.name)
        directory.rmdir()

    def _new_directory(self) -> Path:
        directory = self._output / f"variant-{len(self._found.steps)}"
        directory.mkdir()
        return directory

    def _build(self, name: str, steps: list[AskedStep], directory: Path) -> Built:
        self._progress(f"Making {name}", 0, 0)
        with self._worker(_builder(name)) as worker:
            return worker.build(
                self._directory,
                self._resolved.spec,
                [each.for_worker() for each in steps],
                str(directory),
                self._request.dtype,
                self._request.device,
                self._request.seed,
                self._trial,
                self._request.max_kl,
            )

    def _worker(self, name: str) -> WorkerProcess:
        worker = WorkerProcess(
            name,
            self._scratch,
            self._progress,
            events=self._events,
            step_timeout=self._request.step_timeout,
        )
        self._stack.callback(worker.end, at_once=True)
        return worker

    def _open(self, worker: WorkerProcess, name: str, directory: str) -> Contestant:
        self._progress(f"Loading {name}", 0, 0)
        dtype = self._request.dtype if name == BASELINE else None
        return self.timing.open(worker, name, directory, dtype)

    def _warm_up(self, contestant: Contestant, *, first_use: bool = False) -> None:
        slow = ": a first use that compiles can take minutes" if first_use else ""
        self._progress(f"Warming up {contestant.name}{slow}", 0, 0)
        warm_up(contestant, self._ids, self._plan)
        contestant.sample = contestant.worker.sample(SAMPLE_PROMPT, self._plan.sample_tokens)


def _in_order(apply: Iterable[Applying], plugins: PluginManager) -> list[AskedStep]:
    made = [plugins.make_optimization(each.name, each.options) for each in apply]
    owners = {
        name: f"{row.distribution.name} {row.version}"
        for row in plugins.rows()
        for name in row.optimizations
        if row.distribution is not None
    }
    return [
        AskedStep(each, owners.get(each.name, ""), each.options.model_dump(mode="json"))
        for each in in_order(made)
    ]


def _builder(name: str) -> str:
    return f"making {name}"


def _emit_end(events: EventEmitter, step: AskedStep, accepted: bool, reason: str) -> None:
    """Emit that a step was measured, and what the gate said of it."""
    if accepted:
        events.emit(OptimizationFinished(optimization=step.name, reason=reason))
    else:
        events.emit(OptimizationReverted(optimization=step.name, reason=reason))
