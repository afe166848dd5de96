"""What the user types: addresses, models and options."""

from __future__ import annotations

from typing import Any

import pytest
from openai_server import Handler, Server, serving, with_models

from truthgpt_core.decoding import GenerationError
from truthgpt_core.errors import TruthGPTError
from truthgpt_plugin_openai.engine import make_engine
from truthgpt_plugin_openai.settings import read_settings
from truthgpt_plugin_openai.source import Address, OpenAISource


def nothing(handler: Handler) -> None:
    handler.reply(404, {})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("openai:", "'' is not a URL of http or https"),
        ("openai:gpt-5", "'gpt-5' is not a URL"),
        ("openai:ftp://host/v1", "is not a URL of http or https"),
        ("openai:http://[::1/v1", "is not a URL"),
        ("openai:http://host:port/v1", "is not a URL"),
        ("openai:http://host/v1?a=b", "has a query"),
        ("openai:http://user:hunter2@host/v1", "has a user name or a password"),
    ],
)
def test_an_address_that_is_none_is_refused(spec: str, message: str) -> None:
    """Before anything is asked, and without showing a password."""
    with pytest.raises(TruthGPTError, match=message) as raised:
        OpenAISource().resolve(spec)
    assert "hunter2" not in str(raised.value)


def test_a_source_has_no_files() -> None:
    """The model is where its server is."""
    found = OpenAISource().resolve("openai:http://127.0.0.1:8000/v1#m")
    assert (found.kind, found.path) == ("openai", None)
    assert not OpenAISource().claims("gpt2")


def test_the_only_model_needs_no_name() -> None:
    """The server says what it is called."""
    with serving(with_models(nothing, "the/model")) as server:
        assert make_engine(f"openai:{server.url}/", {}).model == "the/model"
        assert make_engine(f"openai:{server.url}#the/model", {}).model == "the/model"


@pytest.mark.parametrize(
    ("models", "name", "message"),
    [
        (
            ("llama", "qwen"),
            "",
            r'has 2 models\. Write openai:http.*#MODEL\. It has "llama", "qwen"',
        ),
        ((), "", "has 0 models"),
        (("llama", "qwen"), "#lama", r'no model "lama"\. Did you mean "llama"\? It has'),
        (tuple(f"m{n}" for n in range(50)), "", "…"),
    ],
)
def test_a_model_that_is_not_clear_lists_what_there_is(
    models: tuple[str, ...], name: str, message: str
) -> None:
    """With a suggestion where one is close."""
    with (
        serving(with_models(nothing, *models)) as server,
        pytest.raises(GenerationError, match=message),
    ):
        make_engine(f"openai:{server.url}{name}", {})


def test_a_server_that_lists_nothing_needs_a_name() -> None:
    """Then the name is believed."""
    with serving(nothing) as server:
        assert make_engine(f"openai:{server.url}#m", {}).model == "m"
        with pytest.raises(GenerationError, match="404"):
            make_engine(f"openai:{server.url}", {})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"timeout": 0}, "timeout is 0"),
        ({"timeout": "soon"}, "timeout is 'soon'"),
        ({"api_key_env": "NO_SUCH"}, "there is no such environment variable"),
        ({"extra_fields": "top_kk"}, r'extra_fields has "top_kk"\. Did you mean "top_k"\?'),
        ({"extra_fields": 7}, "extra_fields is 7"),
    ],
)
def test_an_option_that_is_wrong_is_refused(given: dict[str, Any], message: str) -> None:
    """By name."""
    with pytest.raises(GenerationError, match=message):
        read_settings(Address("http://127.0.0.1/v1", None), given)


def test_options_of_others_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine does not know another plugin may."""
    given = {"timeout": 5, "draft": 3}
    read_settings(Address("http://127.0.0.1/v1", None), given)
    assert given == {"draft": 3}


@pytest.mark.parametrize(
    ("url", "given", "expected"),
    [
        ("http://example.com/v1", {}, ""),
        ("http://example.com/v1", {"api_key_env": "OPENAI_API_KEY"}, "k"),
        ("https://example.com/v1", {}, "k"),
        ("http://localhost:8000/v1", {}, "k"),
    ],
)
def test_a_key_is_not_sent_in_the_clear_unless_it_is_named(
    url: str, given: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over http, others on the way could read the key of another service."""
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert read_settings(Address(url, None), dict(given)).key == expected


def test_fields_beyond_the_protocol_have_to_be_asked_for() -> None:
    """A server that does not know them ignores them, or refuses the request."""
    with serving(with_models(nothing, "m")) as server:
        plain = make_engine(f"openai:{server.url}", {})
        more = make_engine(f"openai:{server.url}", {"extra_fields": ["top_k"]})
    assert more.options - plain.options == {"top_k"}


def test_the_server_is_not_asked_before_an_option_is_read() -> None:
    """What is wrong on this side is said first."""
    with serving(with_models(nothing, "m")) as server:
        _refused(server)
        assert server.requests == []


def _refused(server: Server) -> None:
    with pytest.raises(GenerationError):
        make_engine(f"openai:{server.url}", {"timeout": -1})
