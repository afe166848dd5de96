"""Engines that choose tokens themselves, such as another server behind this one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from running import CHAT, Running, serve, until

from truthgpt_core.decoding import Capabilities, Engine, GenerationError
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
