"""Conversations: what is learned of them is what the assistant says."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truthgpt_services.data import DataError, DataLoaderFactory, template_limits, token_store
from truthgpt_services.data.sources.file_sources import ChatLines, JsonLines
from truthgpt_services.testing import END

pytestmark = pytest.mark.slow

TURN = "[{{ m.role }}]\n{{ m.content }}" + END + "\n"
ASKED = "{% if add_generation_prompt %}[assistant]\n{% endif %}"
PLAIN = "{% for m in messages %}" + TURN + "{% endfor %}" + ASKED
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}[assistant]\n"
    "{% generation %}{{ m.content }}" + END + "{% endgeneration %}\n"
    "{% else %}" + TURN + "{% endif %}{% endfor %}" + ASKED
)
CHAT = [
    {"role": "system", "content": "You are short."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hello there."},
    {"role": "user", "content": "assistant, say hello there."},
    {"role": "assistant", "content": "No."},
]


def with_template(tokenizer, template):
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def learned(tokenizer, chats, **options):
    """The texts that there is loss on, in the order of the conversations."""
    given = {"max_length": 400, "batch_size": 100, "shuffle": False, "packing": False}
    (batch,) = DataLoaderFactory.create_train_loader(chats, tokenizer, **(given | options))
    found = []
    for labels in batch["labels"].tolist():
        parts: list[list[int]] = [[]]
        for label in labels:
            if label == -100:
                parts.append([])
            else:
                parts[-1].append(label)
        found.append([tokenizer.decode(part) for part in parts if part])
    return found


@pytest.mark.parametrize("template", [PLAIN, MARKED], ids=["found", "marked"])
@pytest.mark.parametrize("packing", [True, False])
def test_only_the_assistants_turns_are_learned(tokenizer, template, packing):
    """Each turn is learned with its end, and neither its header nor what others say."""
    changed = with_template(tokenizer, template)
    assert learned(changed, [CHAT], packing=packing) == [[f"Hello there.{END}", f"No.{END}"]]


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12),
        min_size=1,
        max_size=3,
    )
)
@settings(max_examples=30)
def test_turns_are_found_whatever_is_said(tokenizer, said):
    """A turn that is found by rendering is the one that is said, in any script."""
    chat = [{"role": role, "content": text} for text in said for role in ("user", "assistant")]
    found = learned(with_template(tokenizer, PLAIN), [chat], max_length=512)
    assert found == [[text + END for text in said]]


def test_texts_and_conversations_can_be_mixed(tokenizer):
    """All of a text is learned, in a data set with conversations too."""
    changed = with_template(tokenizer, PLAIN)
    found = learned(changed, ["one two", CHAT])
    assert found[1] == [f"Hello there.{END}", f"No.{END}"]
    assert found[0] == [tokenizer.decode(tokenizer("one two")["input_ids"][1:]) + END]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            "{% for m in messages[-2:] %}" + TURN + "{% endfor %}" + ASKED,
            "changes what came before",
        ),
        ("{% for m in messages %}" + TURN + "{% endfor %}", "does not begin with what is said"),
        ("{{ raise_exception('no system') }}", "template refuses.*no system"),
        (None, "has no chat template"),
    ],
    ids=["forgets", "no prompt", "raises", "none"],
)
def test_a_template_that_does_not_tell_turns_apart_is_refused(tokenizer, template, said):
    """Nothing is learned by mistake: a template that cannot be used is an error."""
    with pytest.raises(DataError, match=said):
        learned(with_template(tokenizer, template), [CHAT])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "3 s"),
        ("{{ (messages|length + 8) ** (10 ** 9) }}", "3 s"),
        ("{{ messages[0].role * 10 ** 10 }}", "MemoryError"),
        ("{{ messages[0].role * (17 * 1024 * 1024) }}", "more than 16 MiB"),
    ],
    ids=["loops", "power", "memory", "text"],
)
@pytest.mark.parametrize("marks", ["", "{% generation %}{% endgeneration %}"])
def test_a_template_that_never_ends_is_one_error(tokenizer, monkeypatch, template, said, marks):
    """With the conversation at which it was; those before it took their time, and so may it."""
    monkeypatch.setattr(template_limits, "SECONDS", 3)
    only = "{% if messages[0].content == 'Go on.' %}" + template + "{% endif %}"
    changed = with_template(tokenizer, only + marks + PLAIN)
    chats = [CHAT, [{"role": "user", "content": "Go on."}, *HELLO[1:]], CHAT]
    with pytest.raises(DataError, match=rf"refuses a conversation: .*{said}.*Go on\.") as refused:
        learned(changed, chats)
    assert "\n" not in str(refused.value)


def test_threads_may_apply_templates_at_once(monkeypatch):
    """One that ends first has put the environment back for both."""
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)

    class Items(list):
        def __iter__(self):
            os.environ.pop("TOKENIZERS_PARALLELISM", None)
            return super().__iter__()

    made = template_limits.with_limits(lambda item: item, Items(["one"]), lambda *_: None)
    assert made == ["one"]


def test_conversations_are_tokenized_in_several_processes(tokenizer, monkeypatch, cache):
    """In their order, with what is learned of them; and a template that fails is the same error."""
    monkeypatch.setattr(token_store, "IN_MEMORY", 0)
    monkeypatch.setattr(token_store, "_CHUNK", 300)
    chats = [[*CHAT[:-1], {"role": "assistant", "content": str(n)}] for n in range(9)]
    mixed = [chat for each in chats for chat in (each, "a text")]
    changed = with_template(tokenizer, PLAIN)
    several = learned(changed, mixed, tokenizing_processes=2)
    (cache / "tokens").rename(cache / "away")
    assert several == learned(changed, mixed, tokenizing_processes=1)
    failing = with_template(tokenizer, "{{ raise_exception('no system') }}")
    with pytest.raises(DataError, match=r"template refuses.*no system"):
        learned(failing, mixed, tokenizing_processes=2)


def test_conversations_whose_answers_are_cut_off_are_an_error_before_training(tokenizer):
    """An epoch without anything to learn never begins."""
    changed = with_template(tokenizer, PLAIN)
    chat = [{"role": "user", "content": "word " * 99}, {"role": "assistant", "content": "Yes."}]
    for packing in (True, False):
        with pytest.raises(DataError, match="within 20 tokens the assistant says nothing"):
            learned(changed, [chat], max_length=20, packing=packing)
    loader = DataLoaderFactory.create_train_loader([chat, CHAT], changed, 60, 2)
    assert (loader.summary.left_out, loader.summary.rows) == (1, 1)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"messages": "hello"}, 'field "messages" is not a list of messages'),
        ({"messages": []}, "has no message"),
        ({"messages": ["hello"]}, "message 0 is not an object"),
        ({"messages": [{"role": "user"}]}, 'message 0 has no text as "content"'),
        ({"chat": []}, 'has no field "messages"'),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "half a surrogate pair"),
    ],
)
def test_a_line_that_is_no_conversation_is_named(tmp_path, line, said):
    """The error has the file and the line."""
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": CHAT}) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(DataError, match=f"chats.jsonl:2.*{said}"):
        list(ChatLines(str(path)).texts())


def test_conversations_are_read_from_json_lines(tmp_path, tokenizer):
    """A file of conversations is a data set to train on."""
    path = tmp_path / "chats.jsonl"
    path.write_text((json.dumps({"messages": CHAT}) + "\n") * 2)
    source = ChatLines(str(path))
    assert [chat.messages for chat in source.texts()] == [CHAT, CHAT]
    found = learned(with_template(tokenizer, PLAIN), source)
    assert found == [[f"Hello there.{END}", f"No.{END}"]] * 2


SHAREGPT = {
    "id": "a",
    "conversations": [
        {"from": "human", "value": "Hello?"},
        {"from": "gpt", "value": "Hello there."},
    ],
}
ALPACA = {"instruction": "Add.", "input": "1 + 1", "output": "2"}
HELLO = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello there."}]
ADDED = [{"role": "user", "content": "Add.\n\n1 + 1"}, {"role": "assistant", "content": "2"}]


def messages(path: Path, **options) -> list:
    return [chat.messages for chat in ChatLines(str(path), **options).texts()]


@pytest.mark.parametrize("form", ["lines", "array", "indented array"])
def test_share_gpt_and_alpaca_files_are_read_as_they_are(tmp_path, form):
    """As they are found: JSON Lines or one array; roles and fields become messages."""
    rows = [SHAREGPT, ALPACA]
    texts = {
        "lines": "\n".join(map(json.dumps, rows)),
        "array": json.dumps(rows),
        "indented array": json.dumps(rows, indent=2),
    }
    path = tmp_path / "data.json"
    path.write_text(texts[form])
    assert messages(path) == [HELLO, ADDED]


def test_what_was_recognized_is_said_in_a_line(tmp_path):
    """So that nobody has to guess how a file was understood."""
    path = tmp_path / "data.json"
    path.write_text(json.dumps([ALPACA]))
    assert "Alpaca instructions" in (ChatLines(str(path)).describe() or "")
    path.write_text(json.dumps([SHAREGPT]))
    said = ChatLines(str(path)).describe() or ""
    assert "ShareGPT" in said
    assert "\n" not in said


def test_what_else_such_files_have_is_kept(tmp_path):
    """System prompts, earlier turns, an instruction without input; a greeting is no answer."""
    path = tmp_path / "data.jsonl"
    rows = [
        {**ALPACA, "input": "", "system": "Be short.", "history": [["Hi", "Hello."]]},
        {**SHAREGPT, "conversations": [{"from": "gpt", "value": "Welcome!"}] * 2 + HELLO_SHAREGPT},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    first, second = messages(path)
    assert [each["content"] for each in first] == ["Be short.", "Hi", "Hello.", "Add.", "2"]
    assert [each["role"] for each in first] == ["system", *["user", "assistant"] * 2]
    assert second == HELLO


HELLO_SHAREGPT = SHAREGPT["conversations"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"conversations": [{"from": "hunan", "value": "x"}]}, 'Did you mean "human"'),
        ({"conversations": [{"from": "human", "value": 3}]}, 'has no text as "value"'),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "not a known role"),
        ({"conversations": "x"}, 'field "conversations" is not a list of messages'),
        ({"instruction": "x", "output": None}, '"output" is not a text'),
        ({**ALPACA, "history": ["x"]}, '"history" is not a list of pairs'),
    ],
)
def test_a_wrong_conversation_of_theirs_is_named(tmp_path, row, said):
    """The error has the file, the item, and what is wrong."""
    path = tmp_path / "data.json"
    path.write_text(json.dumps([SHAREGPT, row]))
    with pytest.raises(DataError, match=f"data.json, item 1.*{said}"):
        messages(path)


@pytest.mark.parametrize("row", [SHAREGPT, ALPACA, {"messages": CHAT}])
def test_another_source_says_which_one_reads_them(tmp_path, row):
    """`source: jsonl` is what is tried first, and the hint is the one word to change."""
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(DataError, match=r'Set data\.source to "chat"'):
        list(JsonLines(str(path)).texts())


@pytest.mark.parametrize(
    "text",
    ["[", '[{"text": "a"}', '[{"text": "a"},]', '[{"text": "a"}] x', '[{"text": "a"} 1]', "[1]"],
)
def test_an_array_that_is_not_whole_is_an_error(tmp_path, text):
    """A download that broke off is not taken for a smaller data set."""
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"data\.json"):
        list(JsonLines(str(path)).texts())


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5),
    st.sampled_from([None, 0, 3]),
)
def test_an_array_gives_back_what_was_written(tmp_path_factory, texts, indent):
    """Brackets, commas, quotes and line ends in texts come through."""
    path = tmp_path_factory.getbasetemp() / "array.json"
    path.write_text(json.dumps([{"text": text} for text in texts], indent=indent))
    assert list(JsonLines(str(path)).texts()) == texts
