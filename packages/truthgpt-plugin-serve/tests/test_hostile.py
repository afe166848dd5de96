"""Requests that mean harm: none makes the server fail, and none reaches another."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import CHAT, Running, raw, running

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
NAMES = st.sampled_from(
    [
        *("model", "messages", "prompt", "input", "max_tokens", "temperature", "top_p", "top_k"),
        *("min_p", "n", "seed", "stop", "stream", "stream_options", "logprobs", "top_logprobs"),
        *("response_format", "tools", "tool_choice", "logit_bias", "echo", "user", "instructions"),
        *("role", "content", "type", "text", "function", "name", "parameters", "format"),
    ]
)
WORDS = st.sampled_from(
    ["tiny", "user", "system", "tool", "text", "json_schema", "function", "auto", "<tool_call>"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
VALID: dict[str, Any] = {
    "/v1/chat/completions": CHAT | {"max_tokens": 2},
    "/v1/completions": {"model": "tiny", "prompt": "a", "max_tokens": 2},
    "/v1/responses": {"model": "tiny", "input": "a", "max_output_tokens": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(fields=st.dictionaries(NAMES, VALUES, max_size=3))
def test_no_request_makes_the_server_fail(
    server: Running, path: str, fields: dict[str, Any]
) -> None:
    """Whatever the fields hold, it is answered, or refused as the client's fault."""
    body = VALID[path] | fields
    body["n"] = body.get("n") if body.get("n") in (None, 1, 2) else 0
    answer = server.post(path, json.dumps(body).encode("utf-8", "surrogatepass"))
    assert answer.status_code in (200, 400, 404), answer.text


@pytest.mark.slow
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(noise=st.binary(max_size=300))
def test_no_bytes_make_the_server_fail(server: Running, noise: bytes) -> None:
    """In a body, or in place of HTTP."""
    assert server.post("/v1/chat/completions", noise).status_code in (400, 413)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(noise)
    assert server.get("/livez").status_code == 200


HEADS = {
    "long header": b"X-Long: " + b"a" * 200_000 + b"\r\n\r\n",
    "many headers": b"".join(b"X-%d: a\r\n" % number for number in range(20_000)) + b"\r\n",
    "null in a header": b"X-Null: a\0b\r\n\r\n",
    "two lengths": b"Content-Length: 3\r\nContent-Length: 5\r\n\r\nabc",
    "negative length": b"Content-Length: -1\r\n\r\n",
    "length and chunks": b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "wrong chunks": b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_hostile_headers_are_refused(server: Running, head: bytes) -> None:
    """The connection ends with 400, or at once; others are answered."""
    start = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    start += b"Connection: close\r\nContent-Type: application/json\r\n"
    try:
        answer = raw(server.port, start + head)
    except ConnectionError:  # it closed while we were still sending
        answer = b""
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer[:100]
    assert server.get("/livez").status_code == 200


def test_too_large_a_body_is_refused(tiny: Path) -> None:
    """Before it is read if it says how large it is, and while it is read if not."""
    with running(tiny, max_body_bytes=10_000) as server:
        declared = (
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n"
        )
        assert raw(server.port, declared).startswith(b"HTTP/1.1 413")
        chunks = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        chunks += b"Transfer-Encoding: chunked\r\n\r\n"
        chunks += b"1000\r\n" + b"a" * 4096 + b"\r\n"
        chunks += b"2000\r\n" + b"a" * 8192 + b"\r\n"
        assert raw(server.port, chunks).startswith(b"HTTP/1.1 413")


def test_slow_requests_are_ended(tiny: Path) -> None:
    """Neither headers nor a body can be waited for without end."""
    with running(tiny, body_timeout=0.3) as server:
        assert raw(server.port, b"POST /v1/completions HTTP/1.1\r\nHost: ") == b""
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc"
        assert raw(server.port, head).startswith(b"HTTP/1.1 408")


def test_pages_of_other_sites_may_not_ask(server: Running) -> None:
    """Browsers are told nothing that would let them: CORS is off."""
    answer = server.post("/v1/completions", {}, headers={"Origin": "https://example.com"})
    assert "access-control-allow-origin" not in answer.headers


def test_a_name_of_someone_elses_is_not_answered(server: Running) -> None:
    """A page whose name leads to this machine could read the answers else."""
    for host, status in {
        "evil.example": 403,
        "evil.example:8000": 403,
        "127.0.0.1.evil.example": 403,
        "localhost:8000": 200,
        "[::1]:8000": 200,
        "192.0.2.7": 200,
    }.items():
        assert server.get("/v1/models", headers={"Host": host}).status_code == status, host


def test_one_clients_error_does_not_reach_another(server: Running) -> None:
    """A wrong request in the middle of a stream leaves it as it is."""
    expected = server.post("/v1/chat/completions", CHAT | {"max_tokens": 60, "temperature": 0})
    body = json.dumps(CHAT | {"max_tokens": 60, "temperature": 0, "stream": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head + body)
        found = connection.recv(100)
        for wrong in (b"{", b'{"model": "tiny"}', b"[]"):
            assert server.post("/v1/chat/completions", wrong).status_code == 400
        while chunk := connection.recv(65536):
            found += chunk
    pieces = [
        json.loads(line[6:])["choices"][0]["delta"].get("content", "")
        for line in found.decode().splitlines()
        if line.startswith("data: {")
    ]
    assert "".join(pieces) == expected.json()["choices"][0]["message"]["content"]
