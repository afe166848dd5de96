"""The contract of engines, with a server over the engine of PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openai_server import Server, over, serving

from truthgpt_core.testing import EngineContract
from truthgpt_plugin_openai.engine import OpenAIEngine, make_engine
from truthgpt_services import InferenceService, ModelService
from truthgpt_services.testing import write_tiny_model

CHAT = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> InferenceService:
    """A service with a tiny model, which is one for conversations."""
    directory = tmp_path_factory.mktemp("model")
    write_tiny_model(directory)
    models, service = ModelService(), InferenceService()
    tokenizer = models.load_tokenizer(str(directory))
    tokenizer.chat_template = CHAT
    service.configure(models.load_model(str(directory)), tokenizer)
    return service


@pytest.fixture(scope="module")
def server(service: InferenceService) -> Iterator[Server]:
    """A server over it."""
    with serving(over(service)) as server:
        yield server


@pytest.fixture
def engine(server: Server) -> OpenAIEngine:
    """An engine for it, which may send fields that are no part of the protocol."""
    return make_engine(f"openai:{server.url}", {"extra_fields": "top_k,min_new_tokens"})


class TestOpenAI(EngineContract):
    """What any engine does."""


def test_an_answer_is_what_the_service_says(
    engine: OpenAIEngine, service: InferenceService
) -> None:
    """Through the protocol a service gives the texts that it gives without."""
    ours = InferenceService()
    ours.configure(engine)
    for prompt in ("Once upon a time", [{"role": "user", "content": "Who are you?"}]):
        for options in ({}, {"temperature": 0.8, "seed": 3, "top_k": 20, "top_p": 0.9}):
            options = {"max_new_tokens": 16, **options}
            assert ours.generate(prompt, options) == service.generate(prompt, options)  # type: ignore[call-overload]


def test_the_reason_is_the_one_of_the_server(engine: OpenAIEngine) -> None:
    """A text that is as long as it may be says so."""
    ours = InferenceService()
    ours.configure(engine)
    stream = ours.stream("Once upon a time", {"max_new_tokens": 4})
    assert "".join(stream)
    assert stream.finish_reason == "length"


def fields_of(server: Server, engine: OpenAIEngine, prompt: Any, **options: Any) -> dict[str, Any]:
    from truthgpt_core.decoding import SamplingParams

    list(engine.generate(prompt, SamplingParams(max_new_tokens=3, **options)))
    body: dict[str, Any] = server.requests[-1][2]
    return body


def test_a_request_has_what_is_not_neutral(server: Server, engine: OpenAIEngine) -> None:
    """The temperature is always there, since that of servers is 1."""
    neutral = {"model": "tiny", "stream": True, "max_tokens": 3, "temperature": 0.0}
    assert fields_of(server, engine, "a") == neutral | {"prompt": "a"}
    given = fields_of(
        server,
        engine,
        "a",
        temperature=0.5,
        top_p=0.5,
        presence_penalty=1.0,
        logit_bias={7: 2.0},
        stop=("x",),
        top_k=5,
    )
    assert given == neutral | {
        "prompt": "a",
        "temperature": 0.5,
        "seed": 0,
        "top_p": 0.5,
        "presence_penalty": 1.0,
        "logit_bias": {"7": 2.0},
        "stop": ["x"],
        "top_k": 5,
    }


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (True, {"type": "json_object"}),
        (
            {"type": "object"},
            {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
            },
        ),
    ],
)
def test_a_schema_is_the_format_of_the_response(
    server: Server, engine: OpenAIEngine, schema: Any, expected: Any
) -> None:
    """A conversation can be answered in JSON."""
    messages = [{"role": "user", "content": "Who are you?"}]
    assert fields_of(server, engine, messages, json_schema=schema)["response_format"] == expected
