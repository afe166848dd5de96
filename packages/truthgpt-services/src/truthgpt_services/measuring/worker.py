"""A worker process: holds one model, and measures it when told to.

`client.WorkerProcess` starts it, and keeps what libraries print in a file.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truthgpt_core.application import Application, get_application
from truthgpt_core.child_process import send, serve
from truthgpt_core.event_system import Event, EventType
from truthgpt_core.optimization import Progress, Stage, calls
from truthgpt_core.sources import ResolvedModel
from truthgpt_services.importing import importing
from truthgpt_services.measuring.protocol import (
    FORWARDED,
    Built,
    BuiltStep,
    Converted,
    ModelRequests,
    Note,
    Opened,
    StepToBuild,
    in_json_types,
    perform,
)
from truthgpt_services.results.schema import Choice, MetricValue, Skipped, StepCoverage

if TYPE_CHECKING:
    from truthgpt_services.measuring.bench import Bench

PROGRESS_EVERY = 0.1
"""Seconds between two lines of progress; more would only be drawn over."""


class Worker(ModelRequests):
    """What a worker does.

    Args:
        progress: told about work that takes seconds.
        application: where the service `model_service` comes from; the default one of this
            process if None.
    """

    def __init__(self, progress: Progress, application: Application | None = None) -> None:
        application = application or get_application()
        self._progress = progress
        # By name: a plugin that puts another service in its place makes the candidates, too.
        self._service = application.get_service("model_service")
        self._service.progress = progress
        self._inference = application.get_service("inference_service")
        self._plugins = application.plugins
        self._bench: Bench | None = None
        self._unproven: set[str] = set()
        self._notes: dict[tuple[str, str], str] = {}
        application.events.on(EventType.OPTIMIZATION_NOTED, self._noted)

    def answer(self, request: str, arguments: dict[str, Any]) -> Any:
        """Do what is asked, in the types of JSON.

        Raises:
            RequestError: it is not known, or does not fit its types.
        """
        owner = self if hasattr(ModelRequests, request) else self._bench
        return perform(owner, request, arguments)

    def convert(self, source: ResolvedModel, device: str) -> Converted:
        """Convert a model to a transformers directory, unless the cache has it, and describe it."""
        from truthgpt_services.measuring.machine import describe_machine, describe_versions
        from truthgpt_services.models.gguf import as_directory
        from truthgpt_services.models.loading import load_config, load_tokenizer, pick_device

        place = pick_device(device)
        directory = as_directory(source, self._progress)
        config = load_config(directory)
        load_tokenizer(directory)
        return Converted(
            directory=str(directory),
            architecture=(getattr(config, "architectures", None) or [config.model_type])[0],
            machine=describe_machine(place),
            versions=describe_versions(),
        )

    def build(
        self,
        directory: str,
        source: str,
        steps: Sequence[StepToBuild],
        output: str,
        dtype: str | None,
        device: str,
        seed: int,
        tokens: Sequence[int] = (),
        max_kl: float | None = None,
    ) -> Built:
        """Load a model, apply steps to it and save the result.

        A first step that works layer by layer reads the weights itself. What TruthGPT has
        optimized keeps its steps.
        """
        from truthgpt_services.measuring import memory
        from truthgpt_services.models import changes
        from truthgpt_services.models.loading import DTYPES, pick_device
        from truthgpt_services.models.recipe import SavedStep, is_saved, read_recipe

        place = pick_device(device)
        memory.reset_peak(place)
        how = {"dtype": dtype, "device": device}
        trial: dict[str, Any] = {"seed": seed, "tokens": tokens, "max_kl": max_kl}
        model: Any = None if steps else self._service.load_unfinished(directory, how)
        tokenizer = self._service.load_tokenizer(directory)
        done: list[BuiltStep] = []
        saved = list(read_recipe(Path(directory)).steps) if is_saved(Path(directory)) else []
        for step in steps:
            optimization = self._service.make_optimization(step.name, step.options)
            before = None
            if model is None and optimization.layerwise:
                before = changes.parts_on_disk(Path(directory), DTYPES.get(dtype or "auto"))
            if model is None and before is None:
                model = self._service.load_unfinished(directory, how)
            is_compared = optimization.stage is not Stage.EXECUTION
            if before is None and is_compared:
                before = changes.parts_in_memory(model)
            began = time.perf_counter()
            if model is None:
                # Reading the weights is part of it then, and of what it takes.
                applied = self._service.load_and_apply(directory, optimization, how, **trial)
            else:
                # A worker whose step failed throws the model away.
                applied = self._service.apply(optimization, model, undo=False, **trial)
            seconds = time.perf_counter() - began
            model = applied.model
            change = changes.compare(before, model) if is_compared and before else None
            saved.append(
                SavedStep(
                    step.name,
                    optimization.stage.name.lower(),
                    applied.settings,
                    step.distribution,
                )
            )
            coverage = applied.coverage
            done.append(
                BuiltStep(
                    seconds=seconds,
                    settings=applied.settings,
                    coverage=StepCoverage(
                        unit=coverage.unit,
                        covered=len(coverage.covered),
                        total=coverage.total,
                        skipped=[Skipped(name=name, reason=why) for name, why in coverage.skipped],
                    ),
                    notes=list(applied.notes),
                    choices=[Choice(**asdict(each)) for each in applied.choices],
                    changed=change.changed if change else None,
                    changed_note=change.note if change else "",
                )
            )
        # Stable: what only changes how the source is run comes after what was changed of it now.
        saved.sort(key=lambda step: step.stage == Stage.EXECUTION.name.lower())
        self._service.save_model(model, tokenizer, Path(output), source=source, steps=saved)
        return Built(done, memory.peak(place))

    def open(
        self, directory: str, dtype: str | None, device: str, engine: str | None = None
    ) -> Opened:
        """Load the model to be measured."""
        from truthgpt_services.inference.options import read_options
        from truthgpt_services.measuring.bench import Bench
        from truthgpt_services.models.recipe import is_saved, read_recipe

        began = time.perf_counter()
        source = ResolvedModel(directory, "directory", Path(directory), 0)
        how = {"dtype": dtype, "device": device}
        made = self._service.make_engine(source, how, engine=engine)
        tokenizer = made.tokenizer or self._service.load_tokenizer(directory)
        self._inference.configure(made, tokenizer)
        # As a request decodes that says nothing of it. Its decoder may load a model of its own.
        plain = read_options(None, made, tokenizer, self._plugins)
        seconds = time.perf_counter() - began
        self._bench = Bench(made, tokenizer, plain.own_decoder)
        steps = read_recipe(Path(directory)).steps if is_saved(Path(directory)) else ()
        self._unproven = set()
        for step in steps:
            if step.stage != Stage.EXECUTION.name.lower():
                continue
            if self.was_used(step.name, step.settings):
                self._unproven.add(step.name)
                note = "Its was_used says True before anything is computed, so it proves nothing."
                self._notes[step.name, "was_used"] = note
        return self._bench.describe(seconds)

    def sample(self, prompt: str, new_tokens: int) -> str:
        """What the model says to a prompt, greedily.

        A model with a chat template is asked the prompt, and its answer begins a line; any
        other continues the prompt.
        """
        from truthgpt_services.inference.prompts import as_conversation

        assert self._bench is not None
        conversation = as_conversation(self._bench.tokenizer, prompt)
        stream = self._inference.stream(conversation, {"max_new_tokens": new_tokens})
        text = "".join(stream)
        return f"\n{text}" if stream.prompt.is_chat else text

    def measure(self, metric: str, windows: Sequence[list[int]], seed: int) -> list[MetricValue]:
        """Measure the model with a metric of a plugin."""
        from truthgpt_services.measuring.metrics import measure

        assert self._bench is not None
        self._plugins.activate_all()
        made = self._plugins.factories["metric_factory"].create(metric)
        return measure(metric, made, self._bench.engine, self._bench.tokenizer, windows, seed)

    def write_card(self, directory: str, report: str) -> None:
        """Complete the model card of a saved model with what was measured."""
        from truthgpt_services.models.model_card import write_model_card
        from truthgpt_services.models.recipe import read_recipe
        from truthgpt_services.results.schema import Report

        place = Path(directory)
        write_model_card(place, read_recipe(place), Report.model_validate_json(report))

    def was_used(self, name: str, settings: dict[str, Any]) -> bool:
        """Whether tokens that were computed since `open` ran through what a step put in place.

        False for a step that said so before there were any.
        """
        optimization = self._service.make_optimization(name, settings)
        assert self._bench is not None
        if name in self._unproven or self._bench.model is None:
            return False
        return calls.was_used(optimization, self._bench.model)

    def notes(self) -> list[Note]:
        """What optimizations have noted while the model ran."""
        return [Note(name, about, note) for (name, about), note in self._notes.items()]

    def _noted(self, event: Event) -> None:
        data = event.data
        note = str(data["note"])
        # Without `about` it is about itself, and no later one takes its place.
        self._notes[str(data["optimization"]), str(data.get("about", note))] = note


def main() -> None:
    """Answer requests; see `child_process`."""
    last = 0.0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > PROGRESS_EVERY or done == total:
            last = now
            send("progress", [what, done, total])

    def forward(event: Event) -> None:
        # A mapping or a dataclass that a plugin emits under our name may be anything.
        if type(event.payload) is FORWARDED[event.type.name]:
            send("event", [event.type.name, in_json_types(dict(event.data))])

    # Importing torch takes seconds; done now, it goes on before anything waits for it.
    with importing():
        importlib.import_module("truthgpt_services.measuring.bench")
    worker: Worker | None = None

    def answer(request: str, arguments: dict[str, Any]) -> Any:
        nonlocal worker
        # Made when something is asked, which is told what goes wrong.
        if worker is None:
            worker = Worker(progress)
            for name in FORWARDED:
                get_application().events.on(EventType(name), forward)
        return worker.answer(request, arguments)

    serve(answer)


if __name__ == "__main__":
    main()
