"""The engine: text from a GGUF file, with OpenVINO GenAI."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

from truthgpt_core.decoding import (
    AnswerText,
    Capabilities,
    Engine,
    GenerationError,
    SamplingParams,
)


class OpenVINOEngine(Engine):
    """Runs a GGUF file in this process; requests are computed together.

    Args:
        path: the file.

    Raises:
        GenerationError: the library cannot load it.
    """

    name: ClassVar[str] = "openvino"
    capabilities = Capabilities(
        logits=False, prompt_logprobs=False, crop=False, masks=False, hidden_cache=True
    )
    options: frozenset[str] = frozenset(
        {
            *("max_new_tokens", "min_new_tokens", "temperature", "top_k", "top_p", "min_p"),
            *("repetition_penalty", "presence_penalty", "frequency_penalty"),
            *("seed", "stop", "json_schema", "regex"),
        }
    )

    def __init__(self, path: Path) -> None:
        # The library takes a second to import, and is not needed to know what the engine can do.
        from truthgpt_plugin_openvino.pipeline import Pipeline

        self._pipeline = Pipeline(path)
        self.context_length = self._pipeline.context_length

    def generate(self, prompt: Any, params: SamplingParams) -> Generator[str, None, str | None]:
        """Stream an answer; a conversation goes through the chat template of the file."""
        if not prompt:
            raise GenerationError("The prompt is empty")
        is_chat = not isinstance(prompt, str)
        text = self._pipeline.conversation(prompt) if is_chat else prompt
        answer = AnswerText(self._pipeline.decode, params.stop)
        with closing(self._pipeline.tokens(text, params, is_chat=is_chat)) as tokens:
            for token in tokens:
                if piece := answer.add(token):
                    yield piece
                if answer.stopped_by is not None:
                    return "stop_sequence"
        if rest := answer.rest():
            yield rest
        if answer.stopped_by is not None:
            return "stop_sequence"
        return "length" if len(answer.tokens) >= params.max_new_tokens else "eos_token"
