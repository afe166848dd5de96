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
from pathlib import Path
from typing import Any

from truthgpt_core.event_system import (
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
from truthgpt_services.measuring.protocol import BuiltStep
from truthgpt_services.measuring.text import EvaluationText, evaluation_text
from truthgpt_services.measuring.worker_log import NAME as LOG_NAME
from truthgpt_services.measuring.worker_log import collected, keep_logs_on_failure
from truthgpt_services.models.sources import describe, resolve
from truthgpt_services.optimizing import phases
from truthgpt_services.optimizing.candidates import MadeVariant, RequestedStep
from truthgpt_services.optimizing.gate import Effect, nothing_done
from truthgpt_services.optimizing.model_maker import ModelMaker, builder_of
from truthgpt_services.optimizing.phases import BASELINE
from truthgpt_services.optimizing.report_builder import ReportBuilder
from truthgpt_services.optimizing.request import Applying, OptimizeFile
from truthgpt_services.optimizing.reuse import EarlierRun, depends_on
from truthgpt_services.optimizing.schedule import Phase, Schedule
from truthgpt_services.optimizing.sections import with_sections
from truthgpt_services.optimizing.trials import Trials
from truthgpt_services.optimizing.verdict import decide
from truthgpt_services.report.files import write_report
from truthgpt_services.results.record import write_record
from truthgpt_services.results.schema import Outcome, Report
from truthgpt_services.storage.atomic import StagedDirectory


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
    requested = _in_order(request.apply, plugins)
    for metric in request.metrics:
        refuse_unknown_component("metric", metric, plugins.factories["metric_factory"])
    text = evaluation_text(request.text)
    staged = StagedDirectory(request.output, overwrite=overwrite)
    if source is None:
        assert request.model is not None
        source = resolve(request.model, plugins.factories["model_source_factory"])
    with staged, tempfile.TemporaryDirectory(prefix="truthgpt-") as scratch, ExitStack() as stack:
        stack.enter_context(keep_logs_on_failure(Path(scratch)))
        folder = Path(scratch)
        run = Pipeline(request, source, text, staged.path, folder, stack, plugins, progress)
        if warning := run.trials.timing.meter.look():
            warn(warning)
        run.start([each.optimization for each in requested])
        run.reuse()
        for step in requested:
            run.take(step)
        report = run.report(command, record_in=staged.path)
        run.finish(report)
        write_report(report, staged.path)
        # Ends the workers before what they may still read is moved.
        stack.close()
        (staged.path / LOG_NAME).write_text(collected(Path(scratch)), encoding="utf-8")
        staged.commit()
        run.forget()
    return report


class Pipeline:
    """One run: directs who makes, measures and judges the models that take part.

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
        trials: what is measured.
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
        self._request = request
        self._plan = request.plan
        self._resolved = resolved
        self._text = text
        self._events = plugins.events
        self._hooks = plugins.hooks
        self._progress = Schedule(progress)
        self._models = ModelMaker(
            request, resolved, output, scratch, stack, plugins.events, self._progress
        )
        self.trials = Trials(request, self._models, scratch, self._progress)
        self._found = ReportBuilder(request, resolved, text, self.trials)
        self._earlier: EarlierRun | None = None

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
        worker, found = self._models.convert()
        refuse_impossible(self._to_come, describe(self._models.source, self._resolved.spec))
        baseline = MadeVariant(self._models.open(worker, BASELINE, self._models.source))
        self.trials.baseline = self._accepted = baseline
        wanted = self._plan.text_tokens
        ids = worker.tokenize(self._text.text, wanted + self._plan.trial_tokens)
        # What steps try the model on is not what they are judged by, if the text is long enough.
        self.trials.ids, self._models.trial_ids = ids[:wanted], ids[wanted:] or ids
        found_tokens, least = len(self.trials.ids), self._plan.decode_prompt + 2
        if found_tokens < least:
            raise ModelError(
                f"The text {self._text.name} has {found_tokens} tokens, "
                f"and at least {least} are needed"
            )
        self._found.begin(found)
        self.trials.warm_up(baseline.contestant)
        # First of all models: a metric that cannot work ends the run before anything is made.
        self.trials.metrics(baseline.contestant)

    def reuse(self) -> None:
        """Take over what an earlier run of the same command has finished and was cut short."""
        given = depends_on(
            self._request,
            self._models.source,
            self._text.sha256,
            self._found.machine,
            self._found.versions,
            self._to_come,
        )
        self._earlier = EarlierRun(given, self._models)

    def forget(self) -> None:
        """Let the same command measure again: its run has come to its end."""
        if self._earlier is not None:
            self._earlier.forget()

    def take(self, step: RequestedStep) -> None:
        """Try one step: make the model with it, measure it, accept it or not."""
        self._progress.expect(self._later(self._accepted))
        self._to_come = self._to_come[1:]
        steps = [*self._accepted.steps, step]
        name = " + ".join(each.name for each in steps)
        try:
            verdict = calls.check(step.optimization, self._found.machine.device)
            if verdict.ok:
                verdict = self._accepted.runs_with(step.optimization)
            if not verdict.ok:
                reason = f"{verdict.reason}. {verdict.fix}".strip().rstrip(".") + "."
                self._events.emit(OptimizationSkipped(optimization=step.name, reason=reason))
                self._found.note(step, Outcome.NOT_APPLIED, reason[0].upper() + reason[1:])
            elif not self._take_over(name, steps):
                self._try(name, steps)
        except (ModelError, OptimizationError, WorkerError) as error:
            # ModelError: what was saved does not load. The baseline was loaded long ago.
            if isinstance(error, WorkerError) and error.worker not in (name, builder_of(name)):
                raise
            self._events.emit(OptimizationFailed(optimization=step.name, reason=str(error)))
            self._found.note(step, Outcome.FAILED, str(error))

    def report(self, command: Sequence[str], *, record_in: Path | None = None) -> Report:
        """Everything that was found out.

        Args:
            command: the command line.
            record_in: where to record what the result predicts; None if it is not saved.
        """
        # No candidate may have come as far as being timed; the baseline still is reported.
        self.trials.alone()
        self._found.on_torch = self.trials.on_torch() if self._request.apply else None
        # Once more: steps before the last may have noted something since they were tried.
        self._found.collect_notes(self._accepted, self._accepted.steps)
        if record_in is not None:
            self._record(record_in)
        report = self._found.report(command, self._accepted, self.trials.timing.meter.found())
        return with_sections(report, self._hooks)

    def finish(self, report: Report) -> None:
        """Put the files of the result at the top of the output directory, and complete its card."""
        self._models.put_in_place(self._accepted, self.trials.baseline, report)

    def _record(self, directory: Path) -> None:
        """Record what the result predicts, on the engine that it was measured on.

        After all else that its worker is asked: it takes memory, which measurements have the peak
        of, and the process may end if there is too little.
        """
        self._progress(phases.RECORDING, 0, 0)
        try:
            recorded = self.trials.record(self._accepted)
        except (ModelError, WorkerError) as error:
            self._found.replay_missing = str(error)
        else:
            self._found.replay = write_record(directory, **vars(recorded))

    def _later(self, before: MadeVariant) -> list[Phase]:
        """Return the phases of the steps to come, after a variant that is accepted."""
        accepted = [each.name for each in before.steps]
        return phases.of_steps(accepted, self._to_come, self._plan)

    def _take_over(self, name: str, steps: list[RequestedStep]) -> bool:
        """Take a comparison over from an earlier run, if it was finished there."""
        found = self._earlier.find(name, steps) if self._earlier is not None else None
        if self._earlier is None or found is None:
            return False
        accepted = found.step.outcome is Outcome.ACCEPTED
        made = None
        if accepted:
            made = self._earlier.made_again(found, steps, self.trials.baseline)
            if made is None:
                return False
        self.trials.take_over(found, self._accepted, made)
        self._found.take_over(found)
        if made is not None:
            self._accept(made)
        self._emit_end(steps[-1], accepted, self._found.steps[-1].reason)
        return True

    def _try(self, name: str, steps: list[RequestedStep]) -> None:
        # Started first, so that it imports torch while the model is being made.
        worker = self._models.start(name)
        directory = self._models.new_directory()
        made: MadeVariant | None = None
        try:
            built = self._models.build(name, steps, directory)
            candidate = self._models.open(worker, name, directory)
            made = MadeVariant(candidate, steps, directory, built.peak_memory_bytes)
            self._measure(made, built.steps[-1])
        finally:
            if made is None or self._accepted is not made:
                (worker if made is None else made.contestant.worker).end(at_once=True)
                shutil.rmtree(directory, ignore_errors=True)

    def _measure(self, made: MadeVariant, built: BuiltStep) -> None:
        """Measure a candidate as it was saved, judge it, and accept it or not."""
        step, before, first = made.steps[-1], self._accepted, self.trials.timing.launches
        stage = step.optimization.stage
        worker = made.contestant.worker
        self.trials.warm_up(made.contestant, first_use=stage is Stage.EXECUTION)
        used = stage is not Stage.EXECUTION or worker.was_used(step.name, built.settings)
        effect = Effect(stage, built.changed, built.changed_note, used)
        idle = nothing_done(effect)
        if idle and not self._request.gate.keep_all:
            self._emit_end(step, False, idle)
            self._found.note_built(step, Outcome.REJECTED, idle, built)
            self._found.collect_notes(made, [step])
            return
        self.trials.quality(made.contestant)
        self.trials.speed(made, before, self._later(made))
        decision, noted = decide(
            made,
            before,
            built,
            effect,
            trials=self.trials,
            request=self._request,
            hooks=self._hooks,
            file_bytes=self._resolved.file_bytes,
        )
        self._found.variants.append(self._found.variant(made))
        if decision.accepted:
            self._accept(made)
        self._emit_end(step, decision.accepted, decision.reason)
        self._found.note_built(step, decision.outcome, decision.reason, built, **noted)
        self._found.collect_notes(made, [step])
        if self._earlier is not None:
            self._earlier.remember(
                self._found.steps[-1],
                self._found.variants[-1],
                made,
                self.trials.took_turns(before, made),
                first=first,
                notes=self._found.notes.get(step.name, {}),
                load=self.trials.timing.meter.found(),
            )

    def _accept(self, made: MadeVariant) -> None:
        before, self._accepted = self._accepted, made
        if before is not self.trials.baseline:
            before.contestant.worker.end()
            assert before.directory is not None
            shutil.rmtree(before.directory)

    def _emit_end(self, step: RequestedStep, accepted: bool, reason: str) -> None:
        """Emit that a step was measured, and what the gate said of it."""
        if accepted:
            self._events.emit(OptimizationFinished(optimization=step.name, reason=reason))
        else:
            self._events.emit(OptimizationReverted(optimization=step.name, reason=reason))


def _in_order(apply: Iterable[Applying], plugins: PluginManager) -> list[RequestedStep]:
    made = [plugins.make_optimization(each.name, each.options) for each in apply]
    owners = {
        name: f"{row.distribution.name} {row.version}"
        for row in plugins.rows()
        for name in row.optimizations
        if row.distribution is not None
    }
    return [
        RequestedStep(each, owners.get(each.name, ""), each.options.model_dump(mode="json"))
        for each in in_order(made)
    ]
