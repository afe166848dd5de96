"""What is counted and timed, under vLLM's names where the meaning is the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from truthgpt_plugin_serve.places import Places
    from truthgpt_plugin_serve.served_model import ServedModel
    from truthgpt_services.inference.text import TextStream

_MODEL = ("model_name",)
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LONG = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


class Metrics:
    """Counters and histograms of one server; times are in seconds.

    Args:
        models: those that are served, by name; asked when metrics are read.
        places: of engines that choose tokens themselves, by name.
    """

    def __init__(
        self, models: Mapping[str, ServedModel], places: Mapping[str, Places] | None = None
    ) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Schedulers(models, places or {}))
        self._prompt_tokens = self._counter(
            "vllm:prompt_tokens", "Tokens of prompts that were answered."
        )
        self._generated_tokens = self._counter(
            "vllm:generation_tokens", "Tokens that were generated."
        )
        self._ended = self._counter(
            "vllm:request_success", "Texts that ended, by why.", (*_MODEL, "finished_reason")
        )
        self._reused = self._counter(
            "vllm:prefix_cache_hits", "Tokens of prompts that were not read again."
        )
        self._first = self._histogram(
            "vllm:time_to_first_token_seconds",
            "From when a text was asked for to its first token.",
            (*_SHORT, 30, 60, 120),
        )
        self._between = self._histogram(
            "vllm:request_time_per_output_token_seconds",
            "Mean time between two tokens of a text.",
            _SHORT,
        )
        self._whole = self._histogram(
            "vllm:e2e_request_latency_seconds",
            "From when a text was asked for to its end.",
            _LONG,
        )
        self._prompt_sizes = self._histogram(
            "vllm:request_prompt_tokens", "Tokens of a prompt.", _TOKENS
        )
        self._answer_sizes = self._histogram(
            "vllm:request_generation_tokens", "Tokens of an answer.", _TOKENS
        )
        self._responses = self._counter(
            "truthgpt:http_responses", "Responses, by status.", ("path", "status")
        )
        self.open = Gauge(
            "truthgpt:http_requests_open", "Requests that are handled now.", registry=self.registry
        )

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = _MODEL) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, _MODEL, buckets=buckets, registry=self.registry)

    def text_ended(self, model: str, stream: TextStream) -> None:
        """Count a text that has ended, for whatever reason."""
        reason = {"eos_token": "stop", "stop_sequence": "stop"}.get(
            stream.finish_reason or "", stream.finish_reason or "abort"
        )
        self._ended.labels(model, "abort" if reason == "cancelled" else reason).inc()
        generated, prompt = len(stream.tokens), len(stream.prompt.tokens)
        self._prompt_tokens.labels(model).inc(prompt)
        self._generated_tokens.labels(model).inc(generated)
        self._prompt_sizes.labels(model).observe(prompt)
        self._answer_sizes.labels(model).observe(generated)
        self._reused.labels(model).inc(stream.reused_tokens)
        first, seconds = stream.first_token_seconds, stream.seconds
        self._whole.labels(model).observe(seconds)
        if first is not None:
            self._first.labels(model).observe(first)
            if generated > 1:
                self._between.labels(model).observe((seconds - first) / (generated - 1))

    def responded(self, path: str, status: int) -> None:
        """Count a response.

        Args:
            path: the route, never what the client wrote.
            status: of HTTP.
        """
        self._responses.labels(path, str(status)).inc()

    def text(self) -> bytes:
        """Return everything, as Prometheus reads it."""
        return generate_latest(self.registry)


class _Schedulers(Collector):
    """What the schedulers of the models say when they are asked."""

    def __init__(self, models: Mapping[str, ServedModel], places: Mapping[str, Places]) -> None:
        self._models = models
        self._places = places

    def describe(self) -> Iterable[Metric]:
        """Nothing is known before it is asked for."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Ask the schedulers."""
        running = GaugeMetricFamily(
            "vllm:num_requests_running", "Texts that are generated now.", labels=_MODEL
        )
        waiting = GaugeMetricFamily(
            "vllm:num_requests_waiting", "Texts that wait for their turn.", labels=_MODEL
        )
        ready = GaugeMetricFamily(
            "truthgpt:model_ready", "1 if a model answers requests.", labels=_MODEL
        )
        for name, model in list(self._models.items()):
            statistics, places = model.service.statistics, self._places.get(name)
            ready.add_metric((name,), float(model.why_refused is None))
            at_once, asked = statistics.running, statistics.running + statistics.waiting
            if places is not None:
                at_once, asked = places.running, places.texts
            running.add_metric((name,), at_once)
            waiting.add_metric((name,), max(0, asked - at_once))
        yield running
        yield waiting
        yield ready
