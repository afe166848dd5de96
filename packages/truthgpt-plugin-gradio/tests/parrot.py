"""Engines that tests have in their hands: one says what it is told, one waits for the test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, ClassVar

from truthgpt_core.decoding import Capabilities, Engine, SamplingParams
from truthgpt_plugin_gradio import DemoModel
from truthgpt_services import InferenceService
from truthgpt_services.inference.engine import TorchEngine


class Parrot(Engine):
    """Says a text, or what it was asked."""

    name: ClassVar[str] = "parrot"
    capabilities = Capabilities(logits=False)

    def __init__(self, text: str | None = None, error: Exception | None = None) -> None:
        self._text, self._error = text, error

    def generate(self, prompt: Any, params: SamplingParams) -> Iterator[str]:
        """Say it, a word at a time."""
        if self._error is not None:
            raise self._error
        text = self._text or (prompt if isinstance(prompt, str) else prompt[-1]["content"])
        for word in text.split(" "):
            yield word + " "


class Gated(TorchEngine):
    """Takes a pass only when the test lets it."""

    def __init__(self, model: Any, hooks: Any) -> None:
        super().__init__(model, hooks)
        self.gate = threading.Semaphore(0)

    def forward(self, *args: Any, **options: Any) -> Any:
        """Take a pass."""
        assert self.gate.acquire(timeout=60)
        return super().forward(*args, **options)


def demo_model(spec: str, engine: Engine, tokenizer: Any = None) -> DemoModel:
    """Return a model that an engine runs."""
    service = InferenceService()
    service.configure(engine, tokenizer, {"prefix_cache_tokens": 0})
    return DemoModel(spec, service, engine.name, tokenizer)
