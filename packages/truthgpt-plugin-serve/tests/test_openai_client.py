"""The official client, unmodified, gets what the protocol says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
from running import Running

HELLO: Any = [{"role": "user", "content": "Hello"}]
GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 12}
COLOR = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}},
    "required": ["color"],
    "additionalProperties": False,
}
PAINT: Any = {
    "type": "function",
    "function": {"name": "paint", "description": "Paint it.", "parameters": COLOR},
}


def test_a_chat_is_answered_as_generate_answers(client: openai.OpenAI, server: Running) -> None:
    """The same greedy text, and the tokens that it took."""
    answer = client.chat.completions.create(messages=HELLO, **GREEDY)
    expected = server.service.generate(HELLO, {"max_new_tokens": 12, "temperature": 0.0})
    (choice,) = answer.choices
    assert choice.message.content == expected
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("length", "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.model == "tiny"


def test_a_streamed_chat_is_the_same_text_in_pieces(client: openai.OpenAI) -> None:
    """With usage at its end, if it is asked for."""
    whole = client.chat.completions.create(messages=HELLO, **GREEDY)
    chunks = list(
        client.chat.completions.create(
            messages=HELLO, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    *spoken, last = chunks
    assert spoken[0].choices[0].delta.role == "assistant"
    text = "".join(each.choices[0].delta.content or "" for each in spoken)
    assert text == whole.choices[0].message.content
    assert spoken[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert whole.usage is not None
    assert last.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert len({each.id for each in chunks}) == 1


def test_async_clients_are_answered_together(server: Running) -> None:
    """Each gets the text that it would get alone."""

    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="x") as client:

            async def one(word: str) -> str | None:
                messages: Any = [{"role": "user", "content": word}]
                found = await client.chat.completions.create(messages=messages, **GREEDY)
                return found.choices[0].message.content

            return await asyncio.gather(*(one(word) for word in words))

    words = ["Hello", "Good morning", "What", "a day"]
    options = {"max_new_tokens": 12, "temperature": 0.0}
    alone = [server.service.generate([{"role": "user", "content": w}], options) for w in words]
    assert asyncio.run(ask()) == alone


def test_an_async_stream_can_be_left(server: Running) -> None:
    """Its row is free, and the next request is answered."""

    async def ask() -> int:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="x") as client:
            long: Any = {"max_tokens": 400, "logit_bias": {"0": -100}}
            stream = await client.chat.completions.create(
                model="tiny", messages=HELLO, stream=True, **long
            )
            async with stream:
                async for _ in stream:
                    break
            found = await client.chat.completions.create(messages=HELLO, **GREEDY)
            return len(found.choices)

    assert asyncio.run(ask()) == 1
    server.until_idle()


def test_several_texts_are_numbered(client: openai.OpenAI) -> None:
    """`n` texts of one seed are the same ones each time, streamed or not."""
    options: Any = {"model": "tiny", "max_tokens": 8, "n": 3, "seed": 5, "messages": HELLO}
    whole = client.chat.completions.create(**options)
    texts = [""] * 3
    for chunk in client.chat.completions.create(stream=True, **options):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
    assert texts == [each.message.content for each in whole.choices]
    assert [each.index for each in whole.choices] == [0, 1, 2]
    assert len(set(texts)) > 1


def test_without_a_seed_answers_differ(client: openai.OpenAI) -> None:
    """A sampled answer can be asked for again."""
    options: Any = {"model": "tiny", "max_tokens": 12, "messages": HELLO, "temperature": 1.5}
    found = {client.chat.completions.create(**options).choices[0].message.content for _ in range(4)}
    assert len(found) > 1


def test_a_stop_string_ends_the_text(client: openai.OpenAI) -> None:
    """It is not part of it."""
    whole = client.chat.completions.create(messages=HELLO, **GREEDY).choices[0].message.content
    assert whole
    stop = whole[4:6]
    cut = client.chat.completions.create(messages=HELLO, stop=stop, **GREEDY).choices[0]
    assert cut.message.content == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


def test_log_probabilities_come_with_each_token(client: openai.OpenAI, server: Running) -> None:
    """Streamed or not, with the likeliest tokens beside them."""
    options: Any = {"messages": HELLO, "logprobs": True, "top_logprobs": 2, **GREEDY}
    choice = client.chat.completions.create(**options).choices[0]
    assert choice.logprobs is not None
    whole = choice.logprobs.content
    assert whole is not None
    assert "".join(each.token for each in whole) == choice.message.content
    assert all(each.top_logprobs[0].logprob == each.logprob <= 0 for each in whole)
    assert all(len(each.top_logprobs) == 2 for each in whole)
    streamed = []
    for chunk in client.chat.completions.create(stream=True, **options):
        if (found := chunk.choices[0].logprobs) is not None:
            streamed += found.content or []
    assert [each.logprob for each in streamed] == [each.logprob for each in whole]


class Decoding:
    """A tokenizer that does something before it writes a token."""

    def __init__(self, tokenizer: Any, before: Callable[[], Any]) -> None:
        self._tokenizer = tokenizer
        self._before = before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *given: Any, **options: Any) -> Any:
        return self._tokenizer(*given, **options)

    def decode(self, tokens: list[int]) -> str:
        self._before()
        text: str = self._tokenizer.decode(tokens)
        return text


def test_no_log_probability_of_a_stream_is_lost(
    client: openai.OpenAI, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many tokens come while those of one piece are written."""
    slow = Decoding(server.model.tokenizer, server.until_idle)
    options: Any = {"model": "tiny", "max_tokens": 12, "logit_bias": {"0": -100}, "seed": 1}
    whole = client.completions.create(prompt="Hello", logprobs=0, **options).choices[0].logprobs
    assert whole is not None
    monkeypatch.setattr(server.model, "tokenizer", slow)
    chat = [
        each
        for chunk in client.chat.completions.create(
            messages=HELLO, logprobs=True, stream=True, **options
        )
        if (found := chunk.choices[0].logprobs) is not None
        for each in found.content or []
    ]
    assert len(chat) == 12
    offsets: list[int] = []
    for chunk in client.completions.create(prompt="Hello", logprobs=0, stream=True, **options):
        if (listed := chunk.choices[0].logprobs) is not None:
            offsets += listed.text_offset or []
    assert offsets == whole.text_offset


@pytest.mark.parametrize("path", ["/chat/completions", "/completions"])
def test_others_are_answered_while_log_probabilities_are_written(
    server: Running, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Of long answers there are thousands."""
    others = []

    def ask() -> None:
        others.append(httpx2.get(f"{server.root}/livez", timeout=10).status_code)

    monkeypatch.setattr(server.model, "tokenizer", Decoding(server.model.tokenizer, ask))
    chat = path.startswith("/chat")
    body = {"messages": HELLO, "logprobs": True} if chat else {"prompt": "Hello", "logprobs": 0}
    answer = server.post(f"/v1{path}", body | GREEDY | {"max_tokens": 2})
    assert (answer.status_code, set(others)) == (200, {200})


def test_an_answer_follows_its_schema(client: openai.OpenAI) -> None:
    """Whatever the model is."""
    form: Any = {"type": "json_schema", "json_schema": {"name": "color", "schema": COLOR}}
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, response_format=form, max_tokens=60
    )
    assert json.loads(answer.choices[0].message.content or "")["color"] in ("red", "blue")


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_required_call_has_arguments_of_its_schema(client: openai.OpenAI, streamed: bool) -> None:
    """Always JSON, with the function's name and an id; there is no other text."""
    options: Any = {
        "model": "tiny",
        "messages": HELLO,
        "tools": [PAINT],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_tokens": 100,
    }
    if streamed:
        chunks = [
            each.choices[0] for each in client.chat.completions.create(stream=True, **options)
        ]
        found = [call for each in chunks for call in each.delta.tool_calls or ()]
        text = "".join(each.delta.content or "" for each in chunks)
        reason = chunks[-1].finish_reason
    else:
        choice = client.chat.completions.create(**options).choices[0]
        found = list(choice.message.tool_calls or ())
        text, reason = choice.message.content or "", choice.finish_reason
    (call,) = found
    assert json.loads(call.function.arguments)["color"] in ("red", "blue")
    assert (call.function.name, text, reason) == ("paint", "", "tool_calls")
    assert call.id


def test_what_a_call_gave_can_be_told(client: openai.OpenAI) -> None:
    """A conversation with calls and their results goes on."""
    messages: Any = [
        *HELLO,
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "paint", "arguments": '{"color": "red"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
    ]
    answer = client.chat.completions.create(messages=messages, tools=[PAINT], **GREEDY)
    assert answer.choices


def test_completions_echo_prompts_with_log_probabilities(
    client: openai.OpenAI, server: Running
) -> None:
    """As programs that score texts ask for them: for texts and for tokens."""
    tokens = server.model.tokenizer("The future of it").input_ids
    answer = client.completions.create(
        model="tiny",
        prompt=[tokens, tokens[:3]],
        max_tokens=1,
        echo=True,
        logprobs=1,
        temperature=0,
    )
    first, second = answer.choices
    assert first.text.startswith("The future of it")
    found = first.logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.token_logprobs is not None
    assert found.top_logprobs is not None
    assert len(found.token_logprobs) == len(tokens) + 1
    assert found.token_logprobs[0] is None
    expected = server.service.stream(
        "The future of it", {"max_new_tokens": 1, "prompt_logprobs": 1}
    )
    list(expected)
    assert found.token_logprobs[1:-1] == [each.logprob for each in expected.prompt_logprobs[1:]]
    assert "".join(found.tokens) == first.text
    assert second.index == 1


@pytest.mark.parametrize("path", ["chat", "completions"])
def test_each_event_has_the_usage_so_far_where_that_is_asked_for(
    client: openai.OpenAI, path: str
) -> None:
    """As with vLLM: load generators such as GuideLLM ask for it."""
    options: Any = {
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        **GREEDY,
    }
    if path == "chat":
        chunks: list[Any] = list(client.chat.completions.create(messages=HELLO, **options))
    else:
        chunks = list(client.completions.create(prompt="The future", **options))
    counts = [each.usage.completion_tokens for each in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == counts[-2] > counts[0]
    assert len({each.usage.prompt_tokens for each in chunks}) == 1


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_request_for_no_tokens_is_counted_as_none(
    client: openai.OpenAI, server: Running, streamed: bool
) -> None:
    """A prompt is scored or given back, and nothing is said to have been answered."""
    tokens = server.model.tokenizer("The future of it").input_ids
    options: Any = {"model": "tiny", "prompt": tokens, "max_tokens": 0, "echo": True}
    if streamed:
        chunks = list(
            client.completions.create(
                stream=True, stream_options={"include_usage": True}, **options
            )
        )
        text = "".join(each.choices[0].text for each in chunks[:-1])
        used = chunks[-1].usage
    else:
        answer = client.completions.create(logprobs=0, **options)
        found = answer.choices[0].logprobs
        assert found is not None
        assert len(found.token_logprobs or ()) == len(tokens)
        text, used = answer.choices[0].text, answer.usage
    assert text == server.model.tokenizer.decode(tokens)
    assert used is not None
    assert (used.prompt_tokens, used.completion_tokens) == (len(tokens), 0)
    assert used.total_tokens == len(tokens)


def test_completions_stream_each_prompt(client: openai.OpenAI) -> None:
    """The pieces of each make the text that it has alone."""
    options: Any = {"model": "tiny", "max_tokens": 6, "temperature": 0}
    texts = ["", ""]
    for chunk in client.completions.create(prompt=["One", "Two"], stream=True, **options):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    alone = [client.completions.create(prompt=word, **options) for word in ("One", "Two")]
    assert texts == [each.choices[0].text for each in alone]


def test_responses_are_texts(client: openai.OpenAI) -> None:
    """Whole or as events, with the same text as a chat."""
    chat = client.chat.completions.create(messages=HELLO, **GREEDY).choices[0].message.content
    options: Any = {
        "model": "tiny",
        "input": "Hello",
        "max_output_tokens": 16,
        "temperature": 0,
        "store": False,
    }
    whole = client.responses.create(**options)
    assert chat is not None
    assert whole.output_text.startswith(chat)
    events = list(client.responses.create(stream=True, **options))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == (
        whole.output_text
    )
    assert events[0].type == "response.created"
    assert events[-1].type == f"response.{whole.status}"
    assert [each.sequence_number for each in events] == list(range(len(events)))


def test_models_are_listed(client: openai.OpenAI) -> None:
    """By the names that requests use."""
    assert [each.id for each in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "truthgpt"
    with pytest.raises(openai.NotFoundError, match=r'no model "tine"; this server has "tiny"'):
        client.models.retrieve("tine")
