"""Engines that choose tokens themselves, such as another server behind this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from running import CHAT, Running, serve, until

from truthgpt_core.decoding import (
    Capabilities,
    Engine,
    GenerationError,
    OverloadedError,
    RefusedError,
    UnavailableError,
)
from truthgpt_plugin_serve.keys import add_key
from truthgpt_plugin_serve.served_model import ServedModel
from truthgpt_plugin_serve.settings import Settings
from truthgpt_services import InferenceService


class Upstream(Engine):
    """Says what it is told to."""

    name: ClassVar[str] = "upstream"
    capabilities = Capabilities(logits=False, prompt_logprobs=False, crop=False, masks=False)
    options = frozenset({"max_new_tokens", "temperature", "seed"})

    def __init__(self, say: Callable[[], Iterator[str]]) -> None:
        self._say = say

    def generate(self, prompt: Any, params: Any) -> Iterator[str]:
        return self._say()


@contextmanager
def gateway(say: Callable[[], Iterator[str]], **settings: Any) -> Iterator[Running]:
    """Serve an engine without tokens."""
    engine, service = Upstream(say), InferenceService()
    service.configure(engine)
    model = ServedModel("tiny", service, engine, None)
    with serve({"tiny": model}, Settings(**settings)) as found:
        until(lambda: found.get("/readyz").status_code == 200)
        yield found


def last_event(text: str) -> Any:
    return json.loads(text.strip().splitlines()[-3].removeprefix("data: "))


def test_its_errors_are_not_the_client_s() -> None:
    """Whether nothing has come of the answer, or a part of it."""

    def fail() -> Iterator[str]:
        yield "One"
        raise GenerationError("The other server broke off")

    with gateway(fail) as server:
        answer = server.post("/v1/chat/completions", CHAT)
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "generation_failed"
        streamed = server.post("/v1/chat/completions", CHAT | {"stream": True}).text
        assert "One" in streamed
        assert last_event(streamed)["error"]["type"] == "server_error"


def test_its_answers_are_paid_for(tmp_path: Path) -> None:
    """It does not say how many tokens it took, so nothing is given back."""
    keys = tmp_path / "keys.json"
    key = {"Authorization": f"Bearer {add_key(keys, 'a', tokens_per_minute=50)}"}
    with gateway(lambda: iter(["One"]), keys=keys) as server:
        statuses = [
            server.post("/v1/chat/completions", CHAT | {"max_tokens": 40}, headers=key).status_code
            for _ in range(2)
        ]
    assert statuses == [200, 429]


URL = "http://10.0.0.1:8000/v1"
SAID = "no such grüße \x1b[31m" + "x" * 5000
KINDS: dict[str, tuple[GenerationError, int, str]] = {
    "refused": (RefusedError(f"{URL} refuses it", said=SAID), 400, "invalid_request_error"),
    "overloaded": (OverloadedError(f"{URL} has no time", retry_after=7), 429, "rate_limit_error"),
    "unavailable": (UnavailableError(f"{URL} cannot be reached"), 502, "server_error"),
}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("error", "status", "kind"), KINDS.values(), ids=KINDS)
def test_its_errors_say_who_can_do_something(
    error: GenerationError, status: int, kind: str, streamed: bool
) -> None:
    """The client, who is told what the other server said, or nobody but its operator."""

    def fail() -> Iterator[str]:
        yield from ()
        raise error

    with gateway(fail) as server:
        answer = server.post("/v1/chat/completions", CHAT | {"stream": streamed})
    assert answer.status_code == (200 if streamed else status)
    found = (last_event(answer.text) if streamed else answer.json())["error"]
    assert found["type"] == kind
    assert "10.0.0.1" not in answer.text
    assert len(found["message"]) < 600
    if status == 400:
        assert "no such gr" in found["message"]
        assert found["message"].isascii()
        assert found["message"].isprintable()
    if status == 429 and not streamed:
        assert answer.headers["retry-after"] == "7"


def test_no_more_wait_for_it_than_may() -> None:
    """One is answered, another waits, and the third gets 429 at once."""
    begun, over = threading.Semaphore(0), threading.Event()

    def wait() -> Iterator[str]:
        begun.release()
        over.wait(60)
        yield "One"

    with gateway(wait, max_batch_size=1, max_waiting=1) as server, ThreadPoolExecutor(2) as threads:
        try:
            first = threads.submit(server.post, "/v1/chat/completions", CHAT)
            assert begun.acquire(timeout=60)
            second = threads.submit(server.post, "/v1/chat/completions", CHAT)
            until(lambda: 'num_requests_waiting{model_name="tiny"} 1.0' in metrics(server))
            refused = server.post("/v1/chat/completions", CHAT)
            assert not begun.acquire(blocking=False)
        finally:
            over.set()
        assert (first.result().status_code, second.result().status_code) == (200, 200)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert server.post("/v1/chat/completions", CHAT).status_code == 200
        assert 'num_requests_running{model_name="tiny"} 0.0' in metrics(server)


def metrics(server: Running) -> str:
    return server.get("/metrics").text


HANGING = """
import signal, threading, time
from test_gateway import CHAT, gateway

begun = threading.Event()

def hang():
    begun.set()
    time.sleep(3600)
    yield ""

def ask():
    print(server.post("/v1/chat/completions", CHAT).status_code, flush=True)

with gateway(hang, drain_timeout=0.0) as server:
    asking = threading.Thread(target=ask)
    asking.start()
    begun.wait()
    server.server.handle_exit(signal.SIGTERM, None)
    asking.join()
"""


def test_it_does_not_keep_the_process_from_ending() -> None:
    """Whatever it waits for; its client is told."""
    done = subprocess.run(
        [sys.executable, "-c", HANGING],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("503\n", 0), done.stderr


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_it_has_no_longer_than_any_other(streamed: bool) -> None:
    """An answer that is not there in time is an error, whatever the engine waits for."""
    over = threading.Event()

    def hang() -> Iterator[str]:
        yield "One"
        over.wait(60)

    with gateway(hang, request_timeout=0.2) as server:
        try:
            answer = server.post("/v1/chat/completions", CHAT | {"stream": streamed})
        finally:
            over.set()
        error = last_event(answer.text) if streamed else answer.json()
        assert error["error"]["code"] == "deadline_exceeded"
        assert answer.status_code == (200 if streamed else 504)
