"""What the operator sees: health, metrics, logs and traces."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import CHAT, Running, running, until

from truthgpt_plugin_serve.logs import JsonLines
from truthgpt_plugin_serve.tracing import Tracer

SECRET = "my secret words"
ASKED = CHAT | {"max_tokens": 3, "messages": [{"role": "user", "content": SECRET}]}


def metric(server: Running, name: str) -> float:
    """Return the sum of a metric over its labels."""
    lines = server.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What is logged, as the command writes it."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonLines())
    root = logging.getLogger("truthgpt_plugin_serve")
    root.addHandler(handler)
    before = root.level
    root.setLevel(logging.INFO)
    yield written
    root.removeHandler(handler)
    root.setLevel(before)


def entries(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def test_metrics_count_requests_and_tokens(server: Running) -> None:
    """Under vLLM's names, so that its dashboards work."""
    names = ("vllm:generation_tokens_total", "vllm:request_success_total")
    before = [metric(server, name) for name in names]
    options = {"max_tokens": 3, "temperature": 0, "logit_bias": {"0": -100}}
    assert server.post("/v1/chat/completions", CHAT | options).status_code == 200
    after = [metric(server, name) for name in names]
    assert [now - then for now, then in zip(after, before, strict=True)] == [3, 1]
    text = server.get("/metrics").text
    for name in (
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:e2e_request_latency_seconds_count",
        'vllm:num_requests_running{model_name="tiny"} 0.0',
        'vllm:num_requests_waiting{model_name="tiny"} 0.0',
        'truthgpt:model_ready{model_name="tiny"} 1.0',
    ):
        assert name in text


def test_metrics_do_not_grow_with_what_clients_make_up(server: Running) -> None:
    """A path that nobody knows is counted as one, whatever it is called."""
    for number in range(20):
        server.get(f"/made/up/{number}")
    assert "made" not in server.get("/metrics").text


def test_the_log_has_a_line_for_each_request_without_its_text(
    server: Running, log: io.StringIO
) -> None:
    """With an id that the client gets, too, and can give."""
    answer = server.post("/v1/chat/completions", ASKED, headers={b"X-Request-Id": b"abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
    # It is written when the answer has been sent.
    until(lambda: any(each.get("request_id") == "abc-1" for each in entries(log)))
    (entry,) = [each for each in entries(log) if each.get("request_id") == "abc-1"]
    assert entry["status"] == 200
    assert entry["path"] == "/v1/chat/completions"
    assert entry["generated_tokens"] == answer.json()["usage"]["completion_tokens"]
    assert SECRET not in log.getvalue()
    forged = server.get("/v1/models", headers={"X-Request-Id": 'a" b'})
    assert forged.headers["x-request-id"] != 'a" b'


def test_prompts_are_logged_when_asked_for(tiny: Path, log: io.StringIO) -> None:
    """And answers."""
    with running(tiny, log_prompts=True) as server:
        answer = server.post("/v1/chat/completions", ASKED)
    (entry,) = [each for each in entries(log) if "prompt" in each]
    assert SECRET in entry["prompt"]
    assert entry["answers"] == [answer.json()["choices"][0]["message"]["content"]]


def test_what_clients_write_cannot_forge_the_log(server: Running, log: io.StringIO) -> None:
    """Line breaks and terminal sequences stay within their line, as JSON writes them."""
    server.post("/v1/chat/completions", ASKED | {"user": "\n{}\x1b[2J"})
    until(lambda: any(each.get("user") == "\n{}\x1b[2J" for each in entries(log)))
    assert all(line.isascii() and line.isprintable() for line in log.getvalue().splitlines())


def test_what_is_too_long_is_cut_and_its_line_stays_json() -> None:
    """A prompt of megabytes, or answers of it, with what else is known of the request."""
    record = logging.makeLogRecord({"msg": "request", "levelname": "INFO"})
    answers = ["\N{GRINNING FACE}" * 100_000] * 3
    record.fields = {"prompt": "\n" * 4_000_000, "answers": answers, "status": 200}
    line = JsonLines().format(record)
    assert len(line) <= 100_000
    entry = json.loads(line)
    assert (entry["message"], entry["status"]) == ("request", 200)
    assert entry["prompt"].startswith("\n\n")


def test_traces_have_a_span_for_each_request(tiny: Path) -> None:
    """Within the trace of the client, with what was used."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    with running(tiny, tracer=Tracer(provider)) as server:
        headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
        server.post("/v1/chat/completions", ASKED, headers=headers)
    (span,) = [each for each in exporter.get_finished_spans() if "chat" in each.name]
    assert f"{span.context.trace_id:x}" == trace
    assert span.attributes is not None
    assert span.attributes["gen_ai.usage.output_tokens"] == 3
    assert SECRET not in span.to_json()


def test_a_server_that_cannot_generate_any_more_is_not_alive(tiny: Path) -> None:
    """Its supervisor can start it again, and requests do not wait for nothing."""
    with running(tiny) as server:
        assert server.get("/livez").status_code == 200
        server.model.stop()
        assert server.get("/livez").status_code == 503
        assert server.get("/readyz").status_code == 503
        assert server.post("/v1/chat/completions", ASKED).status_code == 503
