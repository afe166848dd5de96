"""Servers that misbehave: each is one clear error, in bounded time and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from openai_server import Handler, Respond, serving, with_models

from truthgpt_core.decoding import (
    GenerationError,
    OverloadedError,
    RefusedError,
    SamplingParams,
    UnavailableError,
)
from truthgpt_plugin_openai.engine import make_engine

KEY = "sk-secret-0123456789"
CHAT = [{"role": "user", "content": "Hello"}]


def streaming(*steps: Callable[[Handler], object]) -> Respond:
    """Begin a stream, and go through steps."""

    def respond(handler: Handler) -> None:
        handler.begin_stream()
        for step in steps:
            step(handler)

    return with_models(respond, "m")


def status(code: int, body: Any, **headers: str) -> Respond:
    """Answer every generation with a status."""
    return with_models(lambda handler: handler.reply(code, body, **headers), "m")


def data(text: str | bytes) -> Callable[[Handler], None]:
    """Send an event."""
    raw = text.encode() if isinstance(text, str) else text
    return lambda handler: handler.send(b"data: " + raw + b"\n\n")


def text(handler: Handler) -> None:
    """Send a piece of text."""
    handler.send_text("Hi")


def cut(handler: Handler) -> None:
    """Close the connection in the middle of the stream."""
    handler.close_connection = True


def forever(what: bytes, pause: float = 0.0) -> Callable[[Handler], None]:
    """Send something until the client leaves."""

    def send(handler: Handler) -> None:
        while True:
            handler.send(what)
            time.sleep(pause)

    return send


SILENT = streaming(lambda handler: time.sleep(3))
EMPTY_EVENT = b'data: {"choices": [{"index": 0, "delta": {"content": ""}}]}\n\n'

FAULTS: dict[str, tuple[Respond, str]] = {
    "401": (
        status(401, {"error": {"message": f"Incorrect API key: {KEY}"}}),
        r"refuses the API key in OPENAI_API_KEY \(401\): Incorrect API key: \*\*\*",
    ),
    "400": (
        status(400, {"error": {"message": "temperature is too high"}}),
        r"refuses the request \(400\): temperature is too high",
    ),
    "404": (status(404, {"detail": "Not Found"}), r"\(404\): Not Found\. .*ends in /v1"),
    "429": (status(429, {"error": {"message": "Slow down"}}), r"\(429\): Slow down\. Try again"),
    "500": (status(500, b"<html>oops</html>"), r"failed \(500\): <html>oops</html>"),
    "a long message": (status(400, {"error": {"message": "x" * 100_000}}), r"x{300}…$"),
    "a large error": (status(400, b"x" * (9 << 20)), "sent more than 8 MiB"),
    "a redirect": (
        status(307, b"", Location="http://127.0.0.2:1/v1/x"),
        "redirects to 127.0.0.2:1, which is not followed",
    ),
    "a compressed response": (
        status(200, b"\x1f\x8b", Content_Encoding="gzip"),
        r"compresses what it sends \('gzip'\)",
    ),
    "a cut stream": (streaming(text, cut), "broke the answer off"),
    "no reason": (streaming(text, Handler.end_stream), "broke the answer off without saying why"),
    "an early end": (
        streaming(lambda handler: handler.send_text("", "content_filter"), Handler.end_stream),
        "ended the answer early .'content_filter'",
    ),
    "not JSON": (streaming(data("{nonsense")), "does not keep to the OpenAI protocol"),
    "not UTF-8": (streaming(data(b"\xff\xfe")), "does not keep to the OpenAI protocol"),
    "deep JSON": (streaming(data("[" * 200_000)), "does not keep to the OpenAI protocol"),
    "an error in the stream": (
        streaming(text, data('{"error": {"message": "CUDA out of memory"}}')),
        "failed while it answered: CUDA out of memory",
    ),
    "a gigantic line": (streaming(forever(b"x" * 65536)), "sent more than 8 MiB"),
    "gigantic comments": (streaming(forever(b":" * 65535 + b"\n")), "sent more than 8 MiB"),
    "events without text": (streaming(forever(EMPTY_EVENT, 0.01)), "no text for 0.7 seconds"),
    "comments without end": (streaming(forever(b": ping\n\n", 0.01)), "no text for 0.7 seconds"),
    "silence": (SILENT, "no text for 0.7 seconds"),
    "text without end": (
        streaming(lambda handler: [handler.send_text("x" * 100) for _ in range(1000)]),
        "more than it was asked for",
    ),
}
WRONG_TYPES = (
    *("null", "7", "[]", '{"choices": null}', '{"choices": [null]}', '{"choices": 7}'),
    '{"choices": [{"delta": 1}]}',
    '{"choices": [{"delta": {"content": 7}}]}',
    '{"choices": [{"delta": {"content": ["a"]}}]}',
)
for number, event in enumerate(WRONG_TYPES):
    FAULTS[f"wrong types {number}"] = (
        streaming(data(event), Handler.end_stream),
        "does not keep to the OpenAI protocol|broke the answer off",
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_server_is_one_error(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the server, says what to do where that is known, and never shows the key."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    respond, message = FAULTS[fault]
    with serving(respond) as server:
        # Megabytes take their time.
        seconds = 10 if "MiB" in message else 0.7
        engine = make_engine(f"openai:{server.url}", {"timeout": seconds})
        began = time.monotonic()
        with pytest.raises(GenerationError, match=message) as raised:
            list(engine.generate(CHAT, SamplingParams(max_new_tokens=8)))
        assert time.monotonic() - began < 20
        assert server.url in str(raised.value)
        assert KEY not in str(raised.value)
        assert raised.value.__cause__ is None
        assert len(str(raised.value)) < 700


KINDS = {
    400: RefusedError,
    404: RefusedError,
    422: RefusedError,
    429: OverloadedError,
    401: UnavailableError,
    500: UnavailableError,
    503: UnavailableError,
}


@pytest.mark.parametrize(("code", "kind"), KINDS.items())
def test_an_error_says_who_can_do_something(code: int, kind: type[GenerationError]) -> None:
    """The caller, by another request; the same request later; or nobody but its operator."""
    with serving(status(code, {"error": {"message": "because"}}, Retry_After="7")) as server:
        engine = make_engine(f"openai:{server.url}", {})
        with pytest.raises(GenerationError) as raised:
            list(engine.generate(CHAT, SamplingParams()))
    assert type(raised.value) is kind
    if isinstance(raised.value, RefusedError):
        assert raised.value.said == "because"
    if isinstance(raised.value, OverloadedError):
        assert raised.value.retry_after == 7


def test_a_server_that_is_not_there_is_an_error() -> None:
    """It says what to look at."""
    with pytest.raises(GenerationError, match=r"cannot be reached: .* See whether the server runs"):
        make_engine("openai:http://127.0.0.1:9/v1", {})


def test_a_text_of_the_wrong_type_is_an_error() -> None:
    """Of `/completions` as well."""
    respond = streaming(data('{"choices": [{"text": ["a"]}]}'), Handler.end_stream)
    with serving(respond) as server:
        engine = make_engine(f"openai:{server.url}", {})
        with pytest.raises(GenerationError, match="does not keep to the OpenAI protocol"):
            list(engine.generate("a", SamplingParams()))


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """It could not reach it, and would read the key."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(with_models(lambda handler: None, "m")) as server:
        assert make_engine(f"openai:{server.url}", {}).model == "m"


def test_a_caller_may_take_its_time() -> None:
    """The time limit is for the server, and not for who reads what it says."""

    def respond(handler: Handler) -> None:
        handler.begin_stream()
        handler.send_text("a")
        handler.send_text("b", "stop")
        handler.end_stream()

    with serving(with_models(respond, "m")) as server:
        engine = make_engine(f"openai:{server.url}", {"timeout": 0.5})
        pieces = iter(engine.generate(CHAT, SamplingParams()))
        first = next(pieces)
        time.sleep(0.8)
        assert [first, *pieces] == ["a", "b"]


def test_a_key_does_not_follow_a_redirect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another host is not asked at all."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(with_models(lambda handler: handler.reply(200, {}), "m")) as other:
        to = other.url.replace("127.0.0.1", "localhost")
        with (
            serving(lambda handler: handler.reply(302, b"", Location=f"{to}/models")) as server,
            pytest.raises(GenerationError, match="redirects to localhost"),
        ):
            make_engine(f"openai:{server.url}", {})
        assert other.requests == []


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("", {}, None),
        (KEY, {}, f"Bearer {KEY}"),
        (KEY, {"api_key_env": "OTHER_KEY"}, "Bearer other"),
    ],
)
def test_the_key_comes_from_the_environment(
    key: str, given: dict[str, Any], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one, no header is sent."""
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.setenv("OTHER_KEY", "other")
    with serving(with_models(lambda handler: None, "m")) as server:
        engine = make_engine(f"openai:{server.url}", dict(given))
        assert server.requests[0][1].get("authorization") == expected
    assert KEY not in repr(vars(engine))
