"""A worker process: holds one model, and measures it when told to.

Run as `python -m truthgpt_services.measuring.worker`. Requests and answers are
lines of JSON on standard input and output; what libraries print goes to standard
error, which `WorkerProcess` keeps in a file. It ends when its input ends, whatever it is
busy with, so it does not outlive the process that started it.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from truthgpt_core.application import Application, get_application
from truthgpt_core.errors import TruthGPTError, in_one_line
from truthgpt_core.event_system import Event, EventType
from truthgpt_core.optimization import Stage, calls
from truthgpt_services.importing import importing

PROGRESS_EVERY = 0.1
"""Seconds between two lines of progress; more would only be drawn over."""

_SECONDS_TO_END = 5.0


class Worker:
    """What a worker can be asked to do: each public method is a request of that name.

    Args:
        progress: told about work that takes seconds.
        application: where the service `model_service` comes from; the default one of this
            process if None.
    """

    def __init__(
        self, progress: Callable[[str, int, int], None], application: Application | None = None
    ) -> None:
        application = application or get_application()
        self._progress = progress
        # By name: a plugin that puts another service in its place makes the candidates, too.
        self._service = application.get_service("model_service")
        self._service.progress = progress
        self._inference = application.get_service("inference_service")
        self._bench: Any = None
        self._unproven: set[str] = set()
        self._notes: dict[tuple[str, str], str] = {}
        application.events.on(EventType.OPTIMIZATION_NOTED, self._noted)

    def convert(
        self, spec: str, kind: str, path: str, file_bytes: int, device: str
    ) -> dict[str, Any]:
        """Convert a model to a transformers directory, unless the cache has it, and describe it."""
        from truthgpt_services.measuring.machine import describe_machine, describe_versions
        from truthgpt_services.models.gguf import as_directory
        from truthgpt_services.models.loading import load_config, load_tokenizer, pick_device
        from truthgpt_services.models.sources import ResolvedModel

        place = pick_device(device)
        directory = as_directory(ResolvedModel(spec, kind, Path(path), file_bytes), self._progress)
        config = load_config(directory)
        load_tokenizer(directory)
        return {
            "directory": str(directory),
            "architecture": (getattr(config, "architectures", None) or [config.model_type])[0],
            "machine": describe_machine(place).model_dump(),
            "versions": describe_versions(),
        }

    def build(
        self,
        directory: str,
        source: str,
        steps: list[dict[str, Any]],
        output: str,
        dtype: str | None,
        device: str,
        seed: int,
        tokens: Sequence[int] = (),
        max_kl: float | None = None,
    ) -> dict[str, Any]:
        """Load a model, apply steps to it and save the result.

        A first step that works layer by layer reads the weights itself. What TruthGPT has
        optimized keeps its steps.

        Returns:
            `peak_memory_bytes`, and `steps`: what became of each. In it are `changed`, whether
            any tensor (by bytes, dtype and shape) or the type of any module differs after it,
            None for a step that only changes how the model is run, which cannot be seen so; and
            `changed_note`, what was compared and how much of it differs.
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
        done: list[dict[str, Any]] = []
        saved = list(read_recipe(Path(directory)).steps) if is_saved(Path(directory)) else []
        for step in steps:
            optimization = self._service.make_optimization(step["name"], step["options"])
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
                    step["name"],
                    optimization.stage.name.lower(),
                    applied.settings,
                    step["distribution"],
                )
            )
            done.append(
                {
                    "seconds": seconds,
                    "settings": applied.settings,
                    "notes": list(applied.notes),
                    "unit": applied.coverage.unit,
                    "covered": len(applied.coverage.covered),
                    "total": applied.coverage.total,
                    "skipped": applied.coverage.skipped,
                    "choices": [asdict(each) for each in applied.choices],
                    "changed": change and change.changed,
                    "changed_note": change.note if change else "",
                }
            )
        # Stable: what only changes how the source is run comes after what was changed of it now.
        saved.sort(key=lambda step: step.stage == Stage.EXECUTION.name.lower())
        self._service.save_model(model, tokenizer, Path(output), source=source, steps=saved)
        return {"steps": done, "peak_memory_bytes": memory.peak(place)}

    def open(self, directory: str, dtype: str | None, device: str) -> dict[str, Any]:
        """Load the model to be measured."""
        from truthgpt_services.measuring.bench import Bench
        from truthgpt_services.models.recipe import is_saved, read_recipe
        from truthgpt_services.models.sources import ResolvedModel

        began = time.perf_counter()
        source = ResolvedModel(directory, "directory", Path(directory), 0)
        engine = self._service.make_engine(source, {"dtype": dtype, "device": device})
        tokenizer = engine.tokenizer or self._service.load_tokenizer(directory)
        seconds = time.perf_counter() - began
        self._bench = Bench(engine, tokenizer)
        self._inference.configure(engine, tokenizer)
        steps = read_recipe(Path(directory)).steps if is_saved(Path(directory)) else ()
        self._unproven = set()
        for step in steps:
            if step.stage != Stage.EXECUTION.name.lower():
                continue
            if self.was_used(step.name, step.settings):
                self._unproven.add(step.name)
                said = "Its was_used says True before anything is computed, so it proves nothing."
                self._notes[step.name, "was_used"] = said
        return {"load_seconds": seconds, **self._bench.describe()}

    def sample(self, prompt: str, new_tokens: int) -> str:
        """What the model says to a prompt, greedily.

        A model with a chat template is asked the prompt, and its answer begins a line; any
        other continues the prompt.
        """
        from truthgpt_services.inference.prompts import as_conversation

        asked = as_conversation(self._bench.tokenizer, prompt)
        stream = self._inference.stream(asked, {"max_new_tokens": new_tokens})
        text = "".join(stream)
        return f"\n{text}" if stream.prompt.is_chat else text

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
        if name in self._unproven or self._bench.model is None:
            return False
        return calls.was_used(optimization, self._bench.model)

    def notes(self) -> list[list[str]]:
        """What optimizations have noted while the model ran: name, what it is about, note."""
        return [[name, about, note] for (name, about), note in self._notes.items()]

    def _noted(self, event: Event) -> None:
        data = event.data
        note = str(data["note"])
        # Without `about` it is about itself, and no later one takes its place.
        self._notes[str(data["optimization"]), str(data.get("about", note))] = note

    def __getattr__(self, request: str) -> Any:
        if request.startswith("_") or self._bench is None:
            raise AttributeError(request)
        return getattr(self._bench, request)


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are no more."""
    last = 0.0

    def answer(kind: str, value: Any) -> None:
        answers.write(json.dumps({kind: value}) + "\n")
        answers.flush()

    def progress(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > PROGRESS_EVERY or done == total:
            last = now
            answer("progress", [what, done, total])

    worker: Worker | None = None
    for line in requests:
        request = json.loads(line)
        try:
            worker = worker or Worker(progress)
            answer("result", getattr(worker, request["do"])(**request["with"]))
        except TruthGPTError as error:
            # Into the log: whoever asked has the line alone.
            traceback.print_exc()
            # With its bases: a plugin's own class is not known to whoever asked.
            kinds = [kind.__name__ for kind in type(error).__mro__]
            answer("error", [kinds, error.message, error.hint])
        except (Exception, SystemExit) as error:  # noqa: BLE001 - told to whoever asked, and logged
            traceback.print_exc()
            answer("crash", in_one_line(error))


def main() -> None:
    """Serve on standard input and output, keeping everything else off both."""
    # Ctrl-C reaches the whole group; the process that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests = os.fdopen(os.dup(sys.stdin.fileno()), encoding="utf-8")
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    # A library that asks a question is at the end of its input, and takes no request for an answer.
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - not a path of a user
        os.dup2(nothing.fileno(), sys.stdin.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _keep_from_forks(answers.fileno())
    _end_after_input(requests.fileno())
    # Importing torch takes seconds; done now, it goes on while nobody waits for it yet.
    with importing():
        importlib.import_module("truthgpt_services.measuring.bench")
    serve(requests, answers)


def _keep_from_forks(descriptor: int) -> None:
    """Let processes that are forked here have a null device instead.

    They would keep the pipe open after this one has died, and nobody would see that it has.
    """
    if hasattr(os, "register_at_fork"):
        null = os.open(os.devnull, os.O_WRONLY)
        os.register_at_fork(after_in_child=lambda: os.dup2(null, descriptor, inheritable=False))


def _end_after_input(descriptor: int) -> None:
    """Kill this process and what it has started some seconds after its input has ended.

    It ends by itself when it comes to read again, which what a plugin does may never let it.
    """
    if not hasattr(select, "poll"):
        return
    ended = select.poll()
    # The end is told without being asked for; that there is something to read is not.
    ended.register(descriptor, 0)

    def watch() -> None:
        ended.poll()
        time.sleep(_SECONDS_TO_END)
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
