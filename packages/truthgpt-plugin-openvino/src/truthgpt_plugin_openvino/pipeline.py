"""The pipeline of OpenVINO GenAI: many requests; a thread that waits for one advances all."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import RLock
from typing import Any

import openvino_genai

from truthgpt_core.decoding import GenerationError, SamplingParams, refuse_too_long
from truthgpt_core.errors import in_one_line

_LONGEST_MESSAGE = 300

_SAMPLING = ("top_p", "min_p")
_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


class Pipeline:
    """A model that is loaded. It may be used from several threads.

    A step computes the next token of every request, so the thread of whichever caller needs a
    token computes for all of them, and none of ours is needed.

    Args:
        path: a GGUF file.

    Attributes:
        context_length: how many tokens the model holds; None if the file does not say.

    Raises:
        GenerationError: the library cannot load it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = RLock()
        self._numbers = count()
        self._load()
        with _errors(f"{path}"):
            self.context_length = _context_length(path)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return str(self._tokenizer.decode(list(tokens)))

    def conversation(self, messages: Sequence[Any]) -> str:
        """Return the text of a conversation, through the chat template of the model.

        Raises:
            GenerationError: there is none, or it refuses the conversation.
        """
        if not self._tokenizer.chat_template:
            raise GenerationError(
                f"{self._path} has no chat template", hint="Continue a text instead, with --raw."
            )
        with _errors("The chat template"):
            return str(self._tokenizer.apply_chat_template(list(messages), True))

    def tokens(self, text: str, params: SamplingParams, *, is_chat: bool) -> Generator[int]:
        """Generate the tokens that follow a text.

        Args:
            text: it.
            params: how.
            is_chat: the chat template has put special tokens into the text.

        Yields:
            Tokens.

        Raises:
            GenerationError: the library fails; the model is loaded anew for the next request.
        """
        with self._lock:
            pipeline = self._usable()
            with _errors("The request"):
                config = _config(pipeline.get_config(), params)
                encoded = self._tokenizer.encode(text, add_special_tokens=not is_chat)
            length = encoded.input_ids.shape[-1]
            if not length:
                raise GenerationError("The prompt is empty")
            refuse_too_long(length + params.max_new_tokens, self.context_length)
            with _errors("The request"):
                handle = pipeline.add_request(next(self._numbers), encoded.input_ids, config)
        running = openvino_genai.GenerationStatus.RUNNING
        try:
            while True:
                with self._lock:
                    if self._pipeline is not pipeline:
                        raise GenerationError(
                            "OpenVINO failed at another request", hint="Try again."
                        )
                    if not handle.can_read() and handle.get_status() == running:
                        self._step()
                    new = [
                        token
                        for output in (handle.read().values() if handle.can_read() else ())
                        for token in output.generated_ids
                    ]
                    status = handle.get_status()
                yield from new
                if not new and status != running:
                    break
        finally:
            with self._lock:
                if handle.get_status() == running:
                    handle.cancel()
        if status == openvino_genai.GenerationStatus.IGNORED:
            raise GenerationError("There is too little memory for the keys and values of the text")

    def _load(self) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        # Otherwise keys and values of every text stay in memory.
        scheduler.enable_prefix_caching = False
        with _errors(f"{self._path} cannot be loaded: it"):
            pipeline: Any = openvino_genai.ContinuousBatchingPipeline(self._path, scheduler, "CPU")
            self._pipeline = pipeline
            self._tokenizer = pipeline.get_tokenizer()

    def _usable(self) -> Any:
        if self._pipeline is None:
            self._load()
        return self._pipeline

    def _step(self) -> None:
        try:
            with _errors("The request"):
                self._pipeline.step()
        except GenerationError:
            # It fails at every step from here on, whichever request was the cause.
            self._pipeline = None
            raise


def _config(config: Any, params: SamplingParams) -> Any:
    """Return the library's settings, with what is not neutral."""
    config.apply_chat_template = False
    config.max_new_tokens = params.max_new_tokens
    config.min_new_tokens = params.min_new_tokens
    config.do_sample = params.temperature > 0
    for name in _PENALTIES:
        setattr(config, name, getattr(params, name))
    if config.do_sample:
        config.temperature = params.temperature
        # It has 64 bits and no sign.
        config.rng_seed = params.seed % 2**64
        for name in _SAMPLING:
            setattr(config, name, getattr(params, name))
        if params.top_k:
            config.top_k = params.top_k
    if params.is_constrained:
        config.structured_output_config = _form(params)
    config.validate()
    return config


def _form(params: SamplingParams) -> Any:
    import json
    import re

    if params.regex is None:
        schema = {} if params.json_schema is True else params.json_schema
        return openvino_genai.StructuredOutputConfig(json_schema=json.dumps(schema))
    try:
        re.compile(params.regex)
    except (re.error, RecursionError, OverflowError) as error:
        # The library would find out later, and fail at the requests of others as well.
        raise GenerationError(f"regex is not a regular expression: {error}") from None
    return openvino_genai.StructuredOutputConfig(regex=params.regex)


def _context_length(path: Path) -> int | None:
    import gguf

    reader = gguf.GGUFReader(path)
    architecture = reader.get_field("general.architecture")
    if architecture is None:
        return None
    field = reader.get_field(f"{architecture.contents()}.context_length")
    return None if field is None else int(field.contents())


@contextmanager
def _errors(what: str) -> Iterator[None]:
    """Raise what the library raises as a `GenerationError`."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, LookupError, MemoryError) as error:
        # In C++ the place in the source comes first, and what is wrong last.
        lines = [line for line in str(error).splitlines() if line.strip()]
        says = " ".join(lines[-1].split()) if lines else in_one_line(error)
        raise GenerationError(f"{what} failed in OpenVINO: {says[-_LONGEST_MESSAGE:]}") from error
