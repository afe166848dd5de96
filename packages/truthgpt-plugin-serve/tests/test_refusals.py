"""What cannot be done is refused, by its name, in OpenAI's form."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from running import CHAT, Running, running

from truthgpt_plugin_serve.fields import ChatRequest, CompletionRequest, ResponsesRequest
from truthgpt_services.inference import constraints

TEXT: dict[str, Any] = {"model": "tiny", "prompt": "Hello"}
RESPONSE: dict[str, Any] = {"model": "tiny", "input": "Hello"}


def refused(server: Running, path: str, body: Any) -> dict[str, Any]:
    """Return the error of a request that the server does not take."""
    answer = server.post(path, body)
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


UNSUPPORTED = [
    ("/v1/chat/completions", CHAT, "audio", {"voice": "alloy"}),
    ("/v1/chat/completions", CHAT, "web_search_options", {}),
    ("/v1/chat/completions", CHAT, "store", True),
    ("/v1/chat/completions", CHAT, "service_tier", "flex"),
    ("/v1/completions", TEXT, "suffix", "the end"),
    ("/v1/completions", TEXT, "best_of", 3),
    ("/v1/responses", RESPONSE, "previous_response_id", "resp_1"),
    ("/v1/responses", RESPONSE, "tools", []),
    ("/v1/responses", RESPONSE, "store", True),
]


@pytest.mark.parametrize(("path", "body", "name", "value"), UNSUPPORTED)
def test_a_field_that_is_not_supported_is_named(
    server: Running, path: str, body: dict[str, Any], name: str, value: Any
) -> None:
    """It is never ignored."""
    error = refused(server, path, body | {name: value})
    assert error["param"] == name
    assert name in error["message"]


def test_a_field_that_is_null_is_not_given(server: Running) -> None:
    """Clients send null for what they leave out, supported or not."""
    body = CHAT | {"max_tokens": 1, "audio": None, "stop": None, "tools": None}
    assert server.post("/v1/chat/completions", body).status_code == 200


def test_a_misspelled_field_is_recognized(server: Running) -> None:
    """With what was meant."""
    error = refused(server, "/v1/chat/completions", CHAT | {"max_token": 3})
    assert 'Did you mean "max_tokens"?' in error["message"]


def test_content_that_is_not_text_is_refused(server: Running) -> None:
    """A picture is no text, and nobody is to think that it was looked at."""
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    message = {"role": "user", "content": [{"type": "text", "text": "Look"}, part]}
    error = refused(server, "/v1/chat/completions", CHAT | {"messages": [message]})
    assert "messages" in error["message"]


def test_too_long_a_prompt_is_refused_with_both_numbers(server: Running) -> None:
    """Never cut, and never answered by an empty text."""
    prompt = "word " * 600
    tokens = len(server.model.tokenizer(prompt).input_ids)
    error = refused(server, "/v1/completions", TEXT | {"prompt": prompt})
    assert error["code"] == "context_length_exceeded"
    assert "512" in error["message"]
    assert str(tokens) in error["message"]
    error = refused(server, "/v1/chat/completions", CHAT | {"max_tokens": 1000})
    assert "512" in error["message"]
    assert "1000" in error["message"]


CONSTRAINTS: dict[str, dict[str, Any]] = {
    "keyword": {"contains": {"const": 1}},
    "type": {"type": "number or so"},
    "reference": {"$ref": "https://example.com/schema.json"},
    "nothing": {"type": "integer", "minimum": 3, "maximum": 2},
}


@pytest.mark.parametrize("schema", CONSTRAINTS.values(), ids=CONSTRAINTS)
def test_a_schema_that_cannot_be_followed_is_refused(
    server: Running, schema: dict[str, Any]
) -> None:
    """As the form of an answer, and as the arguments of a function, which is named."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    refused(server, "/v1/chat/completions", CHAT | {"response_format": form})
    parameters = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
    tool = {"type": "function", "function": {"name": "measure", "parameters": parameters}}
    error = refused(server, "/v1/chat/completions", CHAT | {"tools": [tool]})
    assert '"measure"' in error["message"]
    assert error["param"] == "tools[0].function.parameters"


def chat_with(schema: Any) -> dict[str, Any]:
    """A chat whose answer a schema allows."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return CHAT | {"response_format": form, "max_tokens": 60, "temperature": 0}


def test_too_large_a_schema_is_refused_with_both_numbers(server: Running) -> None:
    """By itself, and where functions have it together: compiling takes the square of it."""
    schema = {"type": "object", "properties": {f"p{i}": {} for i in range(10_000)}}
    error = refused(server, "/v1/chat/completions", chat_with(schema))
    assert "10001 subschemas" in error["message"]
    assert "2000 are the most" in error["message"]
    tools = [
        {"type": "function", "function": {"name": f"f{number}", "parameters": parameters}}
        for number in range(3)
        for parameters in [{"type": "object", "properties": {f"p{i}": {} for i in range(800)}}]
    ]
    error = refused(server, "/v1/chat/completions", CHAT | {"tools": tools})
    assert "2403 subschemas" in error["message"]
    assert error["param"] == "tools"


def test_a_schema_that_turns_out_too_large_while_it_is_followed_is_refused(
    server: Running,
) -> None:
    """By a status if there is one yet; a stream, by an event that says the same."""
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(900)}}
    error = refused(server, "/v1/chat/completions", chat_with(schema))
    assert "json_schema" in error["message"]
    streamed = server.post("/v1/chat/completions", chat_with(schema) | {"stream": True})
    events = [line for line in streamed.text.splitlines() if line.startswith("data: {")]
    assert json.loads(events[-1][6:])["error"] == error
    form = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    body = RESPONSE | {"text": form, "temperature": 0, "stream": True}
    last = server.post("/v1/responses", body).text.splitlines()[-2]
    failed = json.loads(last.removeprefix("data: "))["response"]
    assert (failed["status"], failed["error"]["code"]) == ("failed", "invalid_prompt")
    assert failed["error"]["message"] == error["message"]
    assert server.post("/v1/chat/completions", chat_with({"const": 1})).status_code == 200


def test_what_takes_long_to_compile_is_refused_and_holds_up_nobody_else(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two are compiled at once; a third, which could not begin in time, may come again."""
    begun, over = threading.Semaphore(0), threading.Event()

    def hang(*args: Any) -> None:
        begun.release()
        over.wait(60)

    monkeypatch.setattr(constraints, "make_constraint", hang)
    with running(tiny, compile_timeout=1.0) as server, ThreadPoolExecutor(8) as threads:
        try:
            schemas = [chat_with({"const": number}) for number in range(8)]
            asked = [threads.submit(server.post, "/v1/chat/completions", each) for each in schemas]
            assert begun.acquire(timeout=60)
            free = server.post("/v1/chat/completions", CHAT | {"max_tokens": 1})
            answers = [each.result() for each in asked]
        finally:
            over.set()
    assert free.status_code == 200
    late = [each.json()["error"] for each in answers if each.status_code == 400]
    assert [each.status_code for each in answers if each.status_code != 400] == [429] * 6
    assert [each["code"] for each in late] == ["constraint_too_complex"] * 2
    assert "more than 1 s" in late[0]["message"]


@pytest.mark.parametrize("kind", ["array", "string", ["object", "null"]], ids=str)
def test_parameters_of_a_function_that_are_no_object_are_refused(
    server: Running, kind: Any
) -> None:
    """Clients take arguments for an object."""
    tool = {"type": "function", "function": {"name": "measure", "parameters": {"type": kind}}}
    error = refused(server, "/v1/chat/completions", CHAT | {"tools": [tool]})
    assert error["param"] == "tools[0].function.parameters"
    assert '"measure"' in error["message"]


@pytest.mark.parametrize("token", ["512", "9" * 20, "9" * 5000, "-1"], ids=len)
def test_a_bias_of_a_token_that_is_not_known_is_refused(server: Running, token: str) -> None:
    """It is the client's mistake, and found before anything is generated."""
    error = refused(server, "/v1/completions", TEXT | {"logit_bias": {token: 1}})
    assert "logit_bias" in error["message"]


FLOODS: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "messages": (ChatRequest, {"messages": [{}] * 1000}),
    "parts": (ChatRequest, {"messages": [{"role": "user", "content": [1] * 1000}]}),
    "calls": (ChatRequest, {"messages": [{"role": "assistant", "tool_calls": [1] * 1000}]}),
    "tools": (ChatRequest, CHAT | {"tools": [1] * 1000}),
    "stop": (ChatRequest, CHAT | {"stop": [1] * 1000}),
    "fields": (ChatRequest, CHAT | {f"x{number}": 1 for number in range(1000)}),
    "prompts": (CompletionRequest, {"prompt": [[]] * 1000}),
    "tokens": (CompletionRequest, {"prompt": [["a"] * 1000]}),
    "input": (ResponsesRequest, {"input": [{}] * 1000}),
    "input parts": (ResponsesRequest, {"input": [{"role": "user", "content": [1] * 1000}]}),
}


@pytest.mark.parametrize(("kind", "body"), FLOODS.values(), ids=FLOODS)
def test_of_many_mistakes_the_first_ones_are_told(
    kind: type[BaseModel], body: dict[str, Any]
) -> None:
    """Telling a million of them would hold up everybody else for seconds."""
    with pytest.raises(ValidationError) as refused:
        kind.model_validate({"model": "tiny"} | body)
    assert refused.value.error_count() < 10


WRONG: list[tuple[str, Any]] = [
    ("/v1/chat/completions", b"{"),
    ("/v1/chat/completions", b""),
    ("/v1/chat/completions", b"[" * 100_000),
    ("/v1/chat/completions", b'{"model": 1e999}'),
    ("/v1/chat/completions", {}),
    ("/v1/chat/completions", []),
    ("/v1/chat/completions", CHAT | {"messages": []}),
    ("/v1/chat/completions", CHAT | {"messages": [{"role": "king", "content": "x"}]}),
    ("/v1/chat/completions", CHAT | {"messages": [{"role": "user"}]}),
    ("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": "\ud800"}]}),
    ("/v1/chat/completions", CHAT | {"temperature": -1}),
    ("/v1/chat/completions", CHAT | {"temperature": "hot"}),
    ("/v1/chat/completions", CHAT | {"top_p": 0}),
    ("/v1/chat/completions", CHAT | {"n": 0}),
    ("/v1/chat/completions", CHAT | {"max_tokens": True}),
    ("/v1/chat/completions", CHAT | {"stop": ""}),
    ("/v1/chat/completions", CHAT | {"logit_bias": {"x": 1}}),
    ("/v1/chat/completions", CHAT | {"top_logprobs": 2}),
    ("/v1/chat/completions", CHAT | {"tool_choice": "required"}),
    ("/v1/completions", TEXT | {"prompt": []}),
    ("/v1/completions", TEXT | {"prompt": ""}),
    ("/v1/completions", TEXT | {"prompt": [99999]}),
    ("/v1/completions", TEXT | {"prompt": [-1]}),
    ("/v1/completions", TEXT | {"prompt": [[]]}),
    ("/v1/completions", TEXT | {"max_tokens": 0}),
    ("/v1/completions", TEXT | {"prompt": ["a"] * 100, "n": 128}),
    ("/v1/responses", RESPONSE | {"input": []}),
    ("/v1/responses", RESPONSE | {"text": {"format": {"type": "xml"}}}),
]


@pytest.mark.parametrize(("path", "body"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_request_is_one_clear_error(server: Running, path: str, body: Any) -> None:
    """In a sentence, without anything of the server's insides."""
    error = refused(server, path, body)
    assert error["message"]
    assert "Traceback" not in error["message"]
    assert ".py" not in error["message"]


def test_an_unknown_route_or_model_is_404(server: Running) -> None:
    """In the same form."""
    answer = server.get("/v1/engines")
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error")
    answer = server.post("/v1/chat/completions", CHAT | {"model": "half a character: \ud800"})
    assert answer.status_code == 404
    answer = server.post("/v1/chat/completions", CHAT | {"model": "gpt-5"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert server.get("/v1/chat/completions").status_code == 405
