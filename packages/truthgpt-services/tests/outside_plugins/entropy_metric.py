"""A metric as a third party would publish it: how unsure a model is of each next token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from truthgpt_core import hookimpl
from truthgpt_core.decoding import Engine
from truthgpt_core.evaluation import Metric, Quantity


class Entropy(Metric):
    name = "entropy"
    requires = ("prompt_logprobs",)

    def measure(
        self, engine: Engine, tokenizer: Any, windows: Sequence[Sequence[int]], seed: int
    ) -> Iterable[Quantity]:
        total, tokens = 0.0, 0
        for window in windows:
            logprobs = engine.prompt_logits(window).float().log_softmax(-1)
            total -= float((logprobs.exp() * logprobs).sum())
            tokens += len(window)
        yield Quantity("Entropy", total / tokens, "nats/token", note="Of the next token.")


@hookimpl
def register_components(factories: Mapping[str, Any]) -> None:
    factories["metric_factory"].register(Entropy.name, Entropy)
