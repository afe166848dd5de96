"""InferenceService: text in, text out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from truthgpt_core.errors import did_you_mean
from truthgpt_core.event_system import EventType, emit_event
from truthgpt_core.plugin_system import PluginManager, get_plugin_manager
from truthgpt_services.inference.decoding import GenerationError, Sampling, stop_tokens, stream

_SAMPLING = tuple(field.name for field in fields(Sampling))
_OPTIONS = ("max_new_tokens", *_SAMPLING)
DEFAULT_NEW_TOKENS = 128


class InferenceService:
    """Generates text with a model, through the hooks of the active plugins.

    Args:
        plugins: the process's plugin manager if None.
    """

    def __init__(self, plugins: PluginManager | None = None) -> None:
        self._plugins = plugins or get_plugin_manager()
        self._model: Any = None
        self._tokenizer: Any = None

    def configure(self, model: Any, tokenizer: Any) -> None:
        """Say what to generate with.

        Args:
            model: a causal language model of transformers.
            tokenizer: the one it was trained with.
        """
        self._plugins.activate_all()
        self._model = model
        self._tokenizer = tokenizer

    def generate(self, prompt: str, options: Mapping[str, Any] | None = None) -> str:
        """Continue a prompt; arguments and errors are those of `stream`.

        Returns:
            What follows the prompt, without it.
        """
        return "".join(self.stream(prompt, options))

    def stream(self, prompt: str, options: Mapping[str, Any] | None = None) -> Iterator[str]:
        """Continue a prompt, yielding text as soon as it is known.

        Args:
            prompt: at least one token.
            options: `max_new_tokens` (default 128), `temperature` (default 0, the
                likeliest token), `top_k`, `top_p`, `seed`.

        Raises:
            GenerationError: nothing was configured, an option is unknown or out of
                range, or the model cannot hold the text.
        """
        if self._model is None:
            raise GenerationError(
                "There is no model to generate with", hint="Call configure first."
            )
        options = dict(options or {})
        for option in options:
            if option not in _OPTIONS:
                raise GenerationError(
                    f'There is no option "{option}" for generating',
                    hint=did_you_mean(option, _OPTIONS) or f"Known: {', '.join(_OPTIONS)}.",
                )
        max_new_tokens = options.pop("max_new_tokens", DEFAULT_NEW_TOKENS)
        ids = self._tokenizer(prompt, return_tensors="pt").input_ids
        tokens = stream(
            self._model,
            self._plugins.hooks,
            ids,
            max_new_tokens=max_new_tokens,
            sampling=Sampling(**options),
            stop=stop_tokens(self._model, self._tokenizer),
        )
        return self._as_text(tokens)

    def _as_text(self, tokens: Iterator[int]) -> Iterator[str]:
        emit_event(EventType.INFERENCE_STARTED, {})
        made: list[int] = []
        # Only a short tail is decoded each time. It begins a token before what is new,
        # because a tokenizer writes a first token without the space before it.
        start = done = 0
        for token in tokens:
            made.append(token)
            known = self._tokenizer.decode(made[start:done])
            text = self._tokenizer.decode(made[start:])
            # A token can be a part of a character; the rest of it comes with the next.
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):
                yield text[len(known) :]
                start, done = done, len(made)
        yield self._tokenizer.decode(made[start:])[len(self._tokenizer.decode(made[start:done])) :]
        emit_event(EventType.INFERENCE_FINISHED, {"tokens": len(made)})
