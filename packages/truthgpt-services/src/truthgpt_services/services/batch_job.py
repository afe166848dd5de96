"""Batches: an answer to each prompt of a file of any size, which goes on after interruptions."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from truthgpt_core.application import get_application
from truthgpt_core.cluster import Cluster, Replicas, same_everywhere
from truthgpt_core.decoding import GenerationError
from truthgpt_core.errors import TruthGPTError, in_one_line
from truthgpt_core.optimization import Progress, no_progress
from truthgpt_core.paths import display_path
from truthgpt_services.data.prompt_records import Contents, PromptFile, PromptRecord
from truthgpt_services.errors import ModelError
from truthgpt_services.importing import importing
from truthgpt_services.storage.record_log import RecordLog, log_path, refuse_existing

if TYPE_CHECKING:
    from truthgpt_core.sources import ResolvedModel
    from truthgpt_services.inference.text import TextStream
    from truthgpt_services.services.inference_service import InferenceService
    from truthgpt_services.services.model_service import ModelService

Answer = dict[str, Any]
"""`index` and `id` of the record, and `text`, `finish_reason` and `tokens`, or `error`."""

_WINDOW = 4
"""Records under way for each text that is generated at once, so that some always wait."""

_TASK = 8
"""Records that a process of a cluster is given at most, for each text that it generates at once."""

_TASKS = 4
"""Tasks for each process of a cluster at least, if there are records enough."""

_FAILURES_IN_A_ROW = 100
"""So many texts that fail one after the other say that it is not the prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRequest:
    """What is generated, with what, and where it goes.

    Attributes:
        model: as `ModelService.resolve` takes it.
        prompts: a file; see `PromptFile`.
        output: the file with the answers, in the order of the prompts.
        options: of `SamplingParams`, that hold where a record has no others.
        given: options of engines, decoders and logits processors of plugins.
        system: a system message before conversations that begin with none.
        raw: texts are continued as they are, without a chat template.
        device: as for `ModelService.make_engine`.
        engine: the name of the one that is wanted; None for any.
        max_batch_size: how many texts are generated at once at most.
        overwrite: replace an output that is there.
        fail_fast: end at the first record that cannot be answered.
    """

    model: str
    prompts: Path
    output: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None
    raw: bool = False
    device: str = "auto"
    engine: str | None = None
    max_batch_size: int = 8
    overwrite: bool = False
    fail_fast: bool = False


@dataclass(slots=True)
class BatchResult:
    """What became of a batch.

    Attributes:
        records: how many there are.
        kept: how many of them an earlier run had done.
        failed: how many have an error in place of a text.
        tokens: how many were generated now.
        seconds: how long generating took now.
    """

    records: int
    kept: int = 0
    failed: int = 0
    tokens: int = 0
    seconds: float = 0.0


def run_batch(
    request: BatchRequest,
    *,
    cluster: Cluster[Any] | None = None,
    replicas: Replicas | None = None,
    progress: Progress = no_progress,
) -> BatchResult:
    """Generate an answer for each record of a file.

    Answers are appended to a file beside the output as they are done, and the output appears at the
    end. What is interrupted goes on where it was, if model, prompts and options are the same.

    Args:
        request: what to generate.
        cluster: where; in this process if None.
        replicas: how many processes of the cluster; one if None.
        progress: told how far it is.

    Raises:
        ClusterError: the cluster cannot be had, or fails.
        DataError: lines of the prompts cannot be used.
        OutputError: the output cannot be written, or is there already.
        ModelError: the model cannot be had, or fails.
        GenerationError: an option is wrong; with `fail_fast`, or where nearly every record fails,
            what is wrong with one.
    """
    if not log_path(request.output).exists():
        refuse_existing(request.output, overwrite=request.overwrite)
    prompts = PromptFile(request.prompts, request.options, raw=request.raw)
    progress("Checking the prompts", 0, 0)
    contents = prompts.check(lambda done, size: progress("Checking the prompts", done, size))
    progress("Loading the model", 0, 0)
    with importing():
        models: ModelService = get_application().get_service("model_service")
    source = models.resolve(request.model)
    work = _work(request, contents, source)
    with RecordLog(request.output, work, contents.records, overwrite=request.overwrite) as log:
        result = BatchResult(contents.records, kept=log.done)
        if log.done < contents.records:
            records = prompts.records(contents, log.is_done)
            if cluster is None:
                answers = BatchWorker(_settings(request), progress=progress).answers(records)
            else:
                progress(f"Starting on {cluster.name}", 0, 0)
                left = contents.records - log.done
                answers = _of_cluster(request, records, left, cluster, replicas or Replicas())
            with closing(answers):
                _write(answers, log, result, request, progress)
        log.publish()
    return result


def _work(request: BatchRequest, contents: Contents, source: ResolvedModel) -> dict[str, Any]:
    """Return what an answer depends on."""
    from truthgpt_services.optimizing.comparisons import identity

    files: Any = None
    if source.path is not None and source.path.is_dir():
        files = identity(source.path)
    elif source.path is not None:
        facts = source.path.stat()
        files = [source.path.name, facts.st_size, facts.st_mtime_ns]
    settings = _settings(request)
    # How many are generated at once changes no answer, and may be changed to go on.
    del settings["max_batch_size"]
    return {
        "prompts": [contents.records, contents.sha256],
        "model": [settings.pop("model"), files],
        **settings,
    }


def _settings(request: BatchRequest) -> dict[str, Any]:
    """Return what a worker is made with, as JSON."""
    names = ("model", "options", "given", "system", "raw", "device", "engine", "max_batch_size")
    return {name: getattr(request, name) for name in names}


def _of_cluster(
    request: BatchRequest,
    records: Iterator[PromptRecord],
    count: int,
    cluster: Cluster[Any],
    replicas: Replicas,
) -> Generator[Answer, None, None]:
    """Yield the answers of workers on a cluster to so many records."""
    # Several tasks for each process, so that none is idle for long when the others end.
    size = min(-(-count // (_TASKS * replicas.most)), _TASK * request.max_batch_size)
    worker = f"{BatchWorker.__module__}:{BatchWorker.__qualname__}"
    settings = _settings(request) | {"model": same_everywhere(request.model)}
    with closing(cluster.map(worker, settings, _tasks(records, size), replicas=replicas)) as done:
        for answers in done:
            yield from answers


def _tasks(records: Iterator[PromptRecord], size: int) -> Iterator[list[dict[str, Any]]]:
    while task := [asdict(record) for record in islice(records, size)]:
        yield task


def _write(
    answers: Iterable[Answer],
    log: RecordLog,
    result: BatchResult,
    request: BatchRequest,
    progress: Progress,
) -> None:
    """Append answers as they come, and tell how far it is."""
    began, at_first = monotonic(), log.done
    for answer in answers:
        if "error" in answer:
            result.failed += 1
            if request.fail_fast:
                where = f"{display_path(request.prompts)}:{answer['line']}"
                raise GenerationError(
                    f"{where}: {answer['error']}",
                    hint="Correct it, or leave out --fail-fast to go on with the others.",
                )
        else:
            result.tokens += answer["tokens"]["generated"] or 0
        log.append(answer)
        result.seconds = monotonic() - began
        rates = ""
        if result.seconds > 0:
            records = (log.done - at_first) / result.seconds
            rates = f", {records:.3g} records/s, {result.tokens / result.seconds:.3g} tokens/s"
        progress(
            f"Generating: {log.done:,} of {result.records:,} records{rates}",
            log.done,
            result.records,
        )


class BatchWorker:
    """One model in one process, which answers records.

    Args:
        settings: `model`, `options`, `given`, `system`, `raw`, `device`, `engine` and
            `max_batch_size`, as of `BatchRequest`.
        progress: told that the model is loaded.

    Raises:
        ModelError: the model cannot be had.
        GenerationError: an option is wrong, or the model cannot be given a system message.
    """

    def __init__(self, settings: Mapping[str, Any], *, progress: Progress = no_progress) -> None:
        application = get_application()
        with importing():
            from truthgpt_services.inference.options import read_options
            from truthgpt_services.inference.prompts import as_conversation
            from truthgpt_services.services.opened_model import open_model
            from truthgpt_services.services.speculation import beside_others

            models: ModelService = application.get_service("model_service")
            service: InferenceService = application.get_service("inference_service")
        self._system, self._service = settings["system"], service
        models.progress = progress
        given = dict(settings["given"])
        opened = open_model(
            models,
            settings["model"],
            device=settings["device"],
            engine=settings["engine"],
            given=given,
        )
        engine, self._tokenizer = opened.engine, opened.tokenizer
        # What the engine left is for decoders and logits processors.
        self._options = beside_others(engine, {**settings["options"], **given})
        read_options(self._options, engine, self._tokenizer, application.plugins)
        if self._system is not None and self._tokenizer is not None:
            as_conversation(self._tokenizer, "", self._system)
        self._size = settings["max_batch_size"]
        self._window = _WINDOW * self._size
        self._counts = engine.capabilities.logits
        service.configure(
            engine,
            self._tokenizer,
            {
                "max_batch_size": self._size,
                "max_waiting": max(self._window, 1024),
            },
        )

    def answers(self, records: Iterable[PromptRecord]) -> Generator[Answer, None, None]:
        """Yield an answer for each record, in the order in which they are done.

        Records are taken as places become free; a few more than are generated at once.

        Args:
            records: what to answer.

        Raises:
            ModelError: the model fails, whatever the record.
        """
        failures = 0
        with closing(
            self._in_passes(records) if self._counts else self._in_threads(records)
        ) as texts:
            for text in texts:
                if text.stream is not None:
                    failures = 0 if text.error is None else failures + 1
                if failures == _FAILURES_IN_A_ROW:
                    raise ModelError(
                        f"{failures} texts in a row failed, this one last: {text.error}",
                        hint="Nothing that was done is lost: the same command goes on.",
                    )
                yield self._answer(text)

    def __call__(self, task: Iterable[Mapping[str, Any]]) -> list[Answer]:
        """Answer a task of a cluster.

        Args:
            task: records, each with the attributes of a `PromptRecord`.
        """
        return list(self.answers(PromptRecord(**each) for each in task))

    def _in_passes(self, records: Iterable[PromptRecord]) -> Generator[_Text, None, None]:
        """Yield the texts as they are over; reading one of them takes the passes for all."""
        left = iter(records)
        going: list[_Text] = []
        try:
            while True:
                while len(going) < self._window and (record := next(left, None)) is not None:
                    text = self._begin(record)
                    if text.stream is None:
                        yield text
                    else:
                        going.append(text)
                if not going:
                    return
                going[0].read()
                for text in [each for each in going if each.is_over]:
                    text.read_all()
                    going.remove(text)
                    yield text
        finally:
            for text in going:
                text.close()

    def _in_threads(self, records: Iterable[PromptRecord]) -> Generator[_Text, None, None]:
        """Yield the texts of an engine that generates each by itself, several at once."""
        left = iter(records)
        going: set[Future[_Text]] = set()
        is_over = threading.Event()

        def generate(record: PromptRecord) -> _Text:
            text = self._begin(record)
            while not is_over.is_set() and text.read():
                pass
            return text

        with ThreadPoolExecutor(self._size) as pool:
            try:
                while True:
                    free = self._window - len(going)
                    going |= {pool.submit(generate, record) for record in islice(left, free)}
                    if not going:
                        return
                    done, going = wait(going, return_when=FIRST_COMPLETED)
                    for each in done:
                        yield each.result()
            finally:
                is_over.set()
                for each in going:
                    each.cancel()

    def _begin(self, record: PromptRecord) -> _Text:
        try:
            return _Text(record, self._stream(record))
        except TruthGPTError as error:
            return _Text(record, None, error)

    def _stream(self, record: PromptRecord) -> TextStream:
        from truthgpt_services.inference.prompts import as_conversation

        prompt, system = record.prompt, self._system
        begin = [] if system is None else [{"role": "system", "content": system}]
        if not isinstance(prompt, str):
            if prompt[0]["role"] != "system":
                prompt = [*begin, *prompt]
        elif not record.raw and self._tokenizer is None:
            prompt = [*begin, {"role": "user", "content": prompt}]
        elif not record.raw:
            prompt = as_conversation(self._tokenizer, prompt, system)
        return self._service.stream(prompt, {**self._options, **record.options})

    def _answer(self, text: _Text) -> Answer:
        record, stream = text.record, text.stream
        if stream is None or text.error is not None:
            failed = {"line": record.line, "error": str(text.error)}
            return {"index": record.index, "id": record.id, **failed}
        tokens = (len(stream.prompt.tokens), len(stream.tokens)) if self._counts else (None, None)
        return {
            "index": record.index,
            "id": record.id,
            "text": stream.text,
            "finish_reason": stream.finish_reason,
            "tokens": dict(zip(("prompt", "generated"), tokens, strict=True)),
        }


@dataclass(slots=True, eq=False)
class _Text:
    """A text that is being generated, and what went wrong with it; no stream if it never began."""

    record: PromptRecord
    stream: TextStream | None
    error: TruthGPTError | None = None

    @property
    def is_over(self) -> bool:
        return self.error is not None or self.stream is None or self.stream.is_over

    def read(self) -> bool:
        """Read one more piece; return whether there was one."""
        if self.stream is None or self.error is not None:
            return False
        try:
            return next(self.stream, None) is not None
        except TruthGPTError as error:
            self.error = error
            self.close()
            return False
        except Exception as error:
            raise ModelError(
                f"The model failed: {in_one_line(error)}",
                hint="Nothing that was done is lost: the same command goes on.",
            ) from error

    def read_all(self) -> None:
        """Read what is left."""
        while self.read():
            pass

    def close(self) -> None:
        """Make no more of it."""
        if self.stream is not None:
            self.stream.close()
