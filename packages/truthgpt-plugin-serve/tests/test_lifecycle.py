"""Clients that leave, too many of them, deadlines, and the end of the server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from running import CHAT, LONG, Running, running, until


@contextmanager
def stream(server: Running, body: Any) -> Iterator[Iterator[str]]:
    """Ask for a stream; give its lines."""
    with httpx2.stream(
        "POST", f"{server.url}/chat/completions", json=body | {"stream": True}, timeout=60
    ) as answer:
        assert answer.status_code == 200, answer.read()
        yield answer.iter_lines()


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_a_client_that_leaves_frees_its_row(server: Running, streamed: bool) -> None:
    """Within a step, and not at the end of its text."""
    before = server.service.statistics.cancelled
    if streamed:
        with stream(server, LONG) as lines:
            next(lines)
    else:
        body = json.dumps(LONG | {"n": 4}).encode()
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n"
            % len(body)
        )
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(head + b"Content-Type: application/json\r\n\r\n" + body)
            until(lambda: server.service.statistics.running > 0)
    until(lambda: server.service.statistics.cancelled > before)
    server.until_idle()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_a_client_that_leaves_before_its_stream_begins_frees_its_row(
    server: Running, path: str
) -> None:
    """One that takes nothing more, so that not even the head of the response can be sent."""
    texts = {"messages": CHAT["messages"], "max_tokens": 400, "logit_bias": {"0": -100}}
    bodies: dict[str, Any] = {
        "/v1/chat/completions": texts,
        "/v1/completions": texts | {"prompt": ["a", "b"]},
        "/v1/responses": {"input": "a"},
    }
    body = bodies[path] | {"model": "tiny", "stream": True}
    if path == "/v1/completions":
        del body["messages"]
    before = server.service.statistics

    async def ask() -> None:
        tried = asyncio.Event()
        given = iter([json.dumps(body).encode()])

        async def receive() -> dict[str, Any]:
            for each in given:
                return {"type": "http.request", "body": each, "more_body": False}
            await tried.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            tried.set()
            await asyncio.Event().wait()

        scope = {"type": "http", "asgi": {}, "method": "POST", "path": path, "raw_path": path}
        scope |= {"root_path": "", "scheme": "http", "query_string": b"", "http_version": "1.1"}
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        await server.application(scope | {"headers": headers}, receive, send)

    asyncio.run(ask())
    assert not server.application.context.live
    server.until_idle()
    assert server.service.statistics.submitted > before.submitted


def test_too_many_requests_get_429_at_once(tiny: Path) -> None:
    """With when to come back; those that were let in are answered."""
    with running(tiny, max_batch_size=1, max_waiting=2) as server:
        with ThreadPoolExecutor(24) as threads:
            asked = [threads.submit(server.post, "/v1/chat/completions", LONG) for _ in range(24)]
            answers = [each.result() for each in asked]
        statuses = sorted(each.status_code for each in answers)
        refused = [each for each in answers if each.status_code == 429]
        assert set(statuses) == {200, 429}
        assert refused
        assert all(int(each.headers["retry-after"]) >= 1 for each in refused)
        assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"
        server.until_idle()


def test_an_answer_that_is_too_late_is_an_error(tiny: Path) -> None:
    """And no text that looks whole."""
    with running(tiny, request_timeout=0.05) as server:
        answer = server.post("/v1/chat/completions", LONG)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "deadline_exceeded"
        with stream(server, LONG) as lines:
            events = [line for line in lines if line.startswith("data: {")]
        assert json.loads(events[-1][6:])["error"]["code"] == "deadline_exceeded"


def test_a_model_that_fails_is_an_error_without_its_insides(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The requests that it had get it, and the next one is answered."""
    with running(tiny) as server:
        engine, forward = server.model.engine, server.model.engine.forward

        def fail(*args: Any, **options: Any) -> Any:
            raise RuntimeError("secret of /root/model.py")

        monkeypatch.setattr(engine, "forward", fail)
        answer = server.post("/v1/chat/completions", CHAT)
        assert answer.status_code == 500
        assert "secret" not in answer.text
        monkeypatch.setattr(engine, "forward", forward)
        assert server.post("/v1/chat/completions", CHAT | {"max_tokens": 2}).status_code == 200


class Gone(BaseException):
    """What no code expects."""


def test_who_waits_for_a_model_that_dies_is_told_and_the_server_ends(tiny: Path) -> None:
    """Whether its text is generated or waits, and whether it is a stream."""
    with running(tiny, max_batch_size=1) as server, ThreadPoolExecutor(4) as threads:
        asked = threading.Event()

        def die(*args: Any, **options: Any) -> Any:
            asked.wait(60)
            raise Gone

        server.model.engine.forward = die  # type: ignore[method-assign]
        bodies = [LONG, LONG, LONG | {"stream": True}, LONG | {"n": 3, "stream": True}]
        made = [threads.submit(server.post, "/v1/chat/completions", each) for each in bodies]
        until(lambda: len(server.application.context.live) == 4)
        asked.set()
        answers = [each.result() for each in made]
        until(lambda: server.server.should_exit)
    assert [each.status_code for each in answers] == [503, 503, 200, 200]
    events = [
        [line for line in each.text.splitlines() if line.startswith("data: {")][-1][6:]
        for each in answers[2:]
    ]
    errors = [json.loads(each)["error"] for each in (answers[0].text, answers[1].text, *events)]
    assert {(each["type"], each["code"]) for each in errors} == {("server_error", "unavailable")}
    assert {each["message"] for each in errors} == {"The model generates no more"}
    assert server.server.failure == "tiny generates no more"


DYING = """
import sys
from truthgpt_core.cli.main import main
from truthgpt_services import InferenceService

def die(*args):
    raise BaseException("planted")

InferenceService.run = die
sys.exit(main())
"""


@pytest.mark.slow
def test_a_process_whose_model_dies_ends_with_an_error(tiny: Path) -> None:
    """Whoever watches it can start it again, and its log says what happened."""
    done = subprocess.run(
        [
            *(sys.executable, "-c", DYING, "serve", str(tiny), "--port", "0"),
            *("--engine", "torch", "--device", "cpu"),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "tiny generates no more" in done.stderr
    assert "planted" in done.stdout


@pytest.fixture
def process(tiny: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, as a user starts it, and its address."""
    truthgpt = Path(sys.executable).with_name("truthgpt")
    command = (truthgpt, "serve", str(tiny), "--port", "0")
    with subprocess.Popen(
        [*command, "--engine", "torch", "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as running_now:
        assert running_now.stderr is not None
        assert running_now.stdout is not None
        url = ""
        for line in running_now.stderr:
            if found := re.search(r"http://127\.0\.0\.1:\d+/v1", line):
                url = found[0]
                break
        threading.Thread(target=running_now.stdout.read, daemon=True).start()
        threading.Thread(target=running_now.stderr.read, daemon=True).start()
        root = url.removesuffix("/v1")
        until(lambda: httpx2.get(f"{root}/readyz").status_code == 200)
        try:
            yield running_now, url
        finally:
            running_now.kill()


@pytest.mark.slow
def test_sigterm_lets_streams_end_and_refuses_new_requests(
    process: tuple[subprocess.Popen[str], str],
) -> None:
    """Nothing that was begun is lost, and the process ends with 0."""
    command, url = process
    body = LONG | {"stream": True}
    ends = []
    began = threading.Barrier(9, timeout=60)

    def follow() -> None:
        with httpx2.stream("POST", f"{url}/chat/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            began.wait()
            ends.append([first, *(line for line in lines if line)][-2:])

    followers = [threading.Thread(target=follow) for _ in range(8)]
    for each in followers:
        each.start()
    began.wait()
    command.send_signal(signal.SIGTERM)
    refused = None
    while refused is None and command.poll() is None:
        try:
            answer = httpx2.post(f"{url}/chat/completions", json=CHAT, timeout=60)
        except httpx2.TransportError:
            break
        refused = answer.status_code if answer.status_code != 200 else None
    for each in followers:
        each.join(60)
    assert len(ends) == 8
    assert {end[1] for end in ends} == {"data: [DONE]"}
    reasons = {json.loads(end[0][6:])["choices"][0]["finish_reason"] for end in ends}
    assert reasons == {"length"}
    assert refused == 503
    assert command.wait(60) == 0


@pytest.fixture
def slow(tiny: Path) -> Callable[..., Any]:
    """Starts servers of a model that takes long for each token."""

    @contextmanager
    def start(**settings: Any) -> Iterator[Running]:
        with running(tiny, **settings) as server:
            forward = server.model.engine.forward

            def late(*args: Any, **options: Any) -> Any:
                time.sleep(0.05)
                return forward(*args, **options)

            server.model.engine.forward = late  # type: ignore[method-assign]
            yield server

    return start


@contextmanager
def deaf(server: Running, head: bytes, body: bytes = b"") -> Iterator[None]:
    """Send a request, and take next to nothing of the answer, though the connection stays."""
    # Connections have what the socket has that they are accepted from.
    for listening in server.server.servers[0].sockets:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", server.port))
        length = b"Host: localhost\r\nContent-Length: %d\r\n" % len(body)
        connection.sendall(head + length + b"Content-Type: application/json\r\n\r\n" + body)
        yield


@pytest.mark.slow
def test_a_client_that_reads_nothing_frees_its_row(slow: Callable[..., Any]) -> None:
    """Its stream is cancelled, and counted as that."""
    body = LONG | {"stream": True, "n": 8, "logprobs": True, "top_logprobs": 20}
    head = b"POST /v1/chat/completions HTTP/1.1\r\n"
    with slow(send_timeout=0.2) as server, deaf(server, head, json.dumps(body).encode()):
        until(lambda: server.service.statistics.running == 8)
        until(lambda: server.service.statistics.cancelled == 8)
        until(lambda: not server.application.guard.open)
        counted = server.get("/metrics").text
    (line,) = re.findall(r'request_success_total{finished_reason="abort".*', counted)
    assert line.endswith(" 8.0")


def test_an_answer_that_is_not_taken_does_not_keep_its_connection(tiny: Path) -> None:
    """Not even when there is nothing more to come, and so little left that none waits for it."""
    with running(tiny, send_timeout=0.2) as server:
        head = b"GET /openapi.json HTTP/1.1\r\nConnection: close\r\n"
        state = server.server.server_state
        until(lambda: not state.connections)
        before = state.total_requests
        with deaf(server, head):
            until(lambda: state.total_requests > before and not state.connections)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("timeout", "signals"), [(0.1, 1), (60.0, 2)], ids=["too long", "second signal"]
)
def test_what_cannot_end_by_itself_is_cut(
    slow: Callable[..., Any], timeout: float, signals: int
) -> None:
    """Streams that go on too long, and all at a second signal, with an event that says so."""
    with slow(drain_timeout=timeout) as server, stream(server, LONG) as lines:
        next(lines)
        for _ in range(signals):
            server.server.handle_exit(signal.SIGTERM, None)
        events = [line for line in lines if line.startswith("data: {")]
    assert "stopped" in json.loads(events[-1][6:])["error"]["message"]
