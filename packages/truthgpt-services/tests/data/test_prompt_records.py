"""Files of prompts: which lines can be used, and what is said of the others."""

from __future__ import annotations

import json
import os
import re
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truthgpt_core.errors import TruthGPTError
from truthgpt_services.data import DataError
from truthgpt_services.data.prompt_records import LONGEST_LINE, PromptFile, PromptRecord

CHAT = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write lines, each as bytes or as JSON."""

    def write(*lines: Any) -> Path:
        path = tmp_path / "prompts.jsonl"
        encoded = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in lines]
        path.write_bytes(b"\n".join(encoded) + b"\n")
        return path

    return write


def read(path: Path, **options: Any) -> list[PromptRecord]:
    file = PromptFile(path, **options)
    return list(file.records(file.check()))


def test_records_are_read_with_their_ids_and_options(write: Callable[..., Path]) -> None:
    """Empty lines and a byte order mark are none; the last line needs no line break."""
    path = write(
        b'\xef\xbb\xbf{"prompt": "a"}',
        b"",
        {"messages": CHAT, "id": "b", "options": {"seed": 3, "stop": ["x"]}},
        b"  \r",
        {"prompt": "c", "id": 7},
    )
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert read(path) == [
        PromptRecord(0, 1, "a"),
        PromptRecord(1, 3, CHAT, "b", {"seed": 3, "stop": ["x"]}),
        PromptRecord(2, 5, "c", 7),
    ]


def test_requests_for_openai_are_read(write: Callable[..., Path]) -> None:
    """With their own names of options; texts of `/v1/completions` are continued as they are."""
    path = write(
        {
            "custom_id": "one",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "m", "messages": CHAT, "max_tokens": 5, "temperature": None},
        },
        {"custom_id": "two", "url": "/v1/completions", "body": {"prompt": "a", "seed": 1}},
    )
    assert read(path) == [
        PromptRecord(0, 1, CHAT, "one", {"max_new_tokens": 5}),
        PromptRecord(1, 2, "a", "two", {"seed": 1}, raw=True),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "is not JSON"),
        (b"[1]", "is not a JSON object"),
        (b'{"prompt": "caf\xe9"}', "is not UTF-8: byte 15 is 0xe9"),
        (b'{"prompt": "\\ud800"}', "half a character"),
        (b"[" * 200_000, "is nested too deeply"),
        (b'{"prompt": "a", "options": {"temperature": NaN}}', "NaN is not a number"),
        ({}, 'neither of "prompt" and "messages"'),
        ({"prompt": "a", "messages": CHAT}, 'both of "prompt" and "messages"'),
        ({"promt": "a"}, 'it has "promt". Did you mean "prompt"?'),
        ({"prompt": ""}, '"prompt" is not a text, or an empty one'),
        ({"prompt": 3}, '"prompt" is not a text'),
        ({"messages": []}, '"messages" has no message'),
        ({"messages": [{"role": "user"}]}, 'message 0 has no text as "content"'),
        ({"prompt": "a", "id": True}, '"id" is True'),
        ({"prompt": "a", "id": "x" * 513}, '"id" is'),
        ({"prompt": "a", "options": 3}, '"options" is not an object'),
        ({"prompt": "a", "options": {"temprature": 1}}, 'Did you mean "temperature"?'),
        ({"prompt": "a", "options": {"temperature": -1}}, "temperature is -1"),
        ({"prompt": "a", "options": {"n": 2}}, "n has no place in a batch"),
        ({"prompt": "a", "options": {"min_new_tokens": 9}}, "min_new_tokens is 9"),
        ({"custom_id": "a", "body": {"messages": CHAT, "tools": []}}, '"body" has "tools"'),
        ({"custom_id": "a", "url": "/v1/embeddings", "body": {}}, "\"url\" is '/v1/embeddings'"),
        ({"custom_id": "a"}, '"body" is not an object'),
    ],
    ids=lambda each: None if isinstance(each, str) else str(each)[:30],
)
def test_a_line_that_cannot_be_used_is_named(
    write: Callable[..., Path], line: Any, message: str
) -> None:
    """Before any work: the file, the line and what is wrong with it."""
    path = write({"prompt": "fine"}, line)
    with pytest.raises(DataError) as raised:
        PromptFile(path, {"max_new_tokens": 8}).check()
    assert str(raised.value).startswith(f"{path}:2: ")
    assert message in str(raised.value)
    assert len(str(raised.value)) < 600


def test_the_first_few_bad_lines_are_listed(write: Callable[..., Path]) -> None:
    """And no more of a file that is something else."""
    with pytest.raises(DataError) as raised:
        PromptFile(write(*[b"no"] * 50)).check()
    lines = str(raised.value).splitlines()
    assert [line.split(": ")[0][-2:] for line in lines[:5]] == [f":{n}" for n in range(1, 6)]
    assert lines[5:] == ["Only the first 5 are listed. Nothing was generated."]


def test_a_line_may_only_be_so_long(write: Callable[..., Path]) -> None:
    """It is not read into memory, and the line after it has its right number."""
    path = write(b'{"prompt": "' + b"x" * (3 * LONGEST_LINE) + b'"}', b"no")
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as raised:
            PromptFile(path).check()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert f"{path}:1: it has more than 16 MiB\n{path}:2: it is not JSON" in str(raised.value)
    assert peak < 3 * LONGEST_LINE


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Neither when it is checked nor when it is read."""
    path = tmp_path / "prompts.jsonl"
    path.write_bytes((b'{"prompt": "' + b"word " * 2000 + b'"}\n') * 2000)
    tracemalloc.start()
    try:
        file = PromptFile(path)
        contents = file.check()
        assert sum(1 for _ in file.records(contents)) == contents.records == 2000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_a_file_without_a_record_is_refused(write: Callable[..., Path]) -> None:
    """One with empty lines alone, too."""
    with pytest.raises(DataError, match="has no record"):
        PromptFile(write(b"", b" ")).check()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A pipe could not be read twice; nothing waits for one."""
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "", "missing"):
        with pytest.raises(TruthGPTError, match="cannot be"):
            PromptFile(tmp_path / name)


@pytest.mark.parametrize(
    "change", [b"", b'{"prompt": "b"}\n', b'{"prompt": "a"}\n' * 2, b"x" * 16], ids=repr
)
def test_a_file_that_changes_is_noticed(write: Callable[..., Path], change: bytes) -> None:
    """At the latest when it is read to its end."""
    path = write({"prompt": "a"})
    file = PromptFile(path)
    contents = file.check()
    path.write_bytes(change)
    with pytest.raises(DataError, match="was changed while it was read"):
        list(file.records(contents))


WORDS = (
    *("prompt", "messages", "id", "options", "role", "content", "custom_id", "body", "url"),
    *("temperature", "stop", "seed", "json_schema", "logit_bias", "max_tokens", "model"),
)
KEYS = st.sampled_from(WORDS) | st.text(max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)
LINES = st.one_of(
    st.binary(max_size=40),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(KEYS, JSON, max_size=4).map(lambda value: json.dumps(value).encode()),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINES, min_size=1, max_size=4))
def test_any_bytes_are_records_or_one_error(write: Callable[..., Path], lines: list[bytes]) -> None:
    """Which names the file."""
    path = write(*lines)
    with suppress(DataError):
        records = read(path)
        assert [each.index for each in records] == list(range(len(records)))
        assert all(isinstance(each.prompt, str | list) and each.prompt for each in records)
        return
    with pytest.raises(DataError, match=re.escape(str(path))):
        read(path)
