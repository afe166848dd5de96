"""Spans of OpenTelemetry, one for each request, through the extra `otel`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

from truthgpt_plugin_serve.context import Record
from truthgpt_plugin_serve.errors import ServeError

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

# The semantic conventions of OpenTelemetry for generative AI.
_ATTRIBUTES = {
    "model": "gen_ai.request.model",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "generated_tokens": "gen_ai.usage.output_tokens",
    "first_token_seconds": "gen_ai.server.time_to_first_token",
}


class Tracer:
    """Makes spans.

    Args:
        provider: of OpenTelemetry; that of the program if None.
    """

    def __init__(self, provider: Any = None) -> None:
        from opentelemetry import trace

        self._tracer = trace.get_tracer("truthgpt_plugin_serve", tracer_provider=provider)

    @contextmanager
    def request(
        self, scope: MutableMapping[str, Any], headers: Mapping[bytes, str], record: Record
    ) -> Iterator[None]:
        """Make the span of a request, within the trace that its client says.

        Args:
            scope: of ASGI.
            headers: of the request.
            record: what is known of it at the end.
        """
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        carried = {name.decode("latin-1"): value for name, value in headers.items()}
        with self._tracer.start_as_current_span(
            f"{scope['method']} {scope['path'][:200]}",
            context=extract(carried),
            kind=SpanKind.SERVER,
            attributes={"truthgpt.request_id": record.id},
        ) as span:
            yield
            for name, attribute in _ATTRIBUTES.items():
                if name in record.log:
                    span.set_attribute(attribute, record.log[name])


def tracer_from_environment() -> Tracer | None:
    """Return what the environment asks for: spans, if it names where they go.

    Raises:
        ServeError: it does, and the packages for it are missing.
    """
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ServeError(
            f"The environment asks for traces, and {error.name} is missing",
            hint='pip install "truthgpt-plugin-serve[otel]", or unset OTEL_EXPORTER_OTLP_ENDPOINT.',
        ) from None
    # The name can be another, with OTEL_SERVICE_NAME.
    resource = Resource({"service.name": "truthgpt"}).merge(Resource.create())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracer(provider)
