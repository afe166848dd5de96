"""Making the models that take part, and loading each in a worker process of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from truthgpt_core.event_system import EventEmitter
from truthgpt_core.optimization import Progress
from truthgpt_core.sources import ResolvedModel
from truthgpt_services.measuring.client import WorkerProcess
from truthgpt_services.measuring.compare import Contestant
from truthgpt_services.measuring.protocol import Built, Converted, Opened
from truthgpt_services.models.sources import files_of
from truthgpt_services.optimizing.candidates import MadeVariant, RequestedStep
from truthgpt_services.optimizing.phases import BASELINE
from truthgpt_services.optimizing.request import OptimizeFile
from truthgpt_services.results.io import report_json
from truthgpt_services.results.schema import Report


class ModelMaker:
    """Makes variants of one model in the output directory, and starts their workers.

    Args:
        request: what to do.
        resolved: the model.
        output: a directory for the variants, and for the result.
        scratch: a directory for the workers' logs.
        stack: ends the workers.
        events: where what workers emit is emitted.
        progress: told about work that takes seconds.

    Attributes:
        source: the directory of the model in safetensors, once it is converted.
        trial_ids: tokens that steps may try the model on; not those that it is measured on.
    """

    def __init__(
        self,
        request: OptimizeFile,
        resolved: ResolvedModel,
        output: Path,
        scratch: Path,
        stack: ExitStack,
        events: EventEmitter,
        progress: Progress,
    ) -> None:
        self._request = request
        self._resolved = resolved
        self._output = output
        self._scratch = scratch
        self._stack = stack
        self._events = events
        self._progress = progress
        self._numbers = count()
        self.source = Path()
        self.trial_ids: list[int] = []

    def start(self, name: str) -> WorkerProcess:
        """Start a worker process for the model of this name; it ends with the run at the latest."""
        worker = WorkerProcess(
            name,
            self._scratch,
            self._progress,
            events=self._events,
            step_timeout=self._request.step_timeout,
        )
        self._stack.callback(worker.end, at_once=True)
        return worker

    def convert(self) -> tuple[WorkerProcess, Converted]:
        """Start the baseline's worker, and let it convert the model if need be.

        Raises:
            ModelError: there is no such model.
        """
        files_of(self._resolved)  # An error before a process is started, not after.
        worker = self.start(BASELINE)
        found = worker.convert(self._resolved, self._request.device)
        self.source = Path(found.directory)
        return worker, found

    def open(self, worker: WorkerProcess, name: str, directory: Path) -> Contestant:
        """Let a worker load a model, the baseline in the type that was asked for."""
        self._progress(f"Loading {name}", 0, 0)
        dtype = self._request.dtype if name == BASELINE else None
        engine = self._request.engine
        opened = self.begin_loading(worker, str(directory), dtype, engine)()
        return Contestant(name, worker, opened, str(directory), dtype, engine)

    def open_twin(self, contestant: Contestant, name: str, engine: str | None) -> Contestant:
        """Load the model of another contestant once more, in a process of its own."""
        worker, directory, dtype = self.start(name), contestant.directory, contestant.dtype
        opened = self.begin_loading(worker, directory, dtype, engine)()
        return Contestant(name, worker, opened, directory, dtype, engine)

    def begin_loading(
        self, worker: WorkerProcess, directory: str, dtype: str | None, engine: str | None
    ) -> Callable[[], Opened]:
        """Let a worker load a model on the device of the request; return what waits for it."""
        return worker.begin(worker.open, directory, dtype, self._request.device, engine)

    def open_again(self, made: MadeVariant) -> None:
        """Load a variant that was measured in an earlier run."""
        contestant, made.cold = made.contestant, False
        self.open(contestant.worker, contestant.name, Path(contestant.directory))

    def new_directory(self) -> Path:
        """Make a directory for a variant."""
        directory = self._output / f"variant-{next(self._numbers)}"
        directory.mkdir()
        return directory

    def build(self, name: str, steps: list[RequestedStep], directory: Path) -> Built:
        """Make a variant from the source, in a process of its own that ends with it.

        Args:
            name: of the variant.
            steps: to apply.
            directory: where to save it.
        """
        self._progress(f"Making {name}", 0, 0)
        with self.start(builder_of(name)) as worker:
            return worker.build(
                str(self.source),
                self._resolved.spec,
                [each.for_worker() for each in steps],
                str(directory),
                self._request.dtype,
                self._request.device,
                self._request.seed,
                self.trial_ids,
                self._request.max_kl,
            )

    def put_in_place(self, result: MadeVariant, baseline: MadeVariant, report: Report) -> None:
        """Put the files of the result at the top of the output, and complete its model card."""
        self._progress("Writing the result", 0, 0)
        directory = result.directory
        if directory is None:
            directory = self.new_directory()
            self.build(BASELINE, [], directory)
        if result.steps:
            baseline.contestant.worker.write_card(str(directory), report_json(report))
        for file in directory.iterdir():
            file.rename(self._output / file.name)
        directory.rmdir()


def builder_of(name: str) -> str:
    """Return the name of the worker that makes a variant."""
    return f"making {name}"
