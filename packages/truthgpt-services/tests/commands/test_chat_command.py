"""`truthgpt chat` in a pipe: each line is a message, and standard output has the answers."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pytest
from click.testing import CliRunner

from truthgpt_core import application
from truthgpt_core.errors import TruthGPTError
from truthgpt_services import InferenceService
from truthgpt_services.commands.chat import chat
from truthgpt_services.models.loading import load_tokenizer

TORCH = ("--engine", "torch", "--device", "cpu")
SHORT = ("--max-new-tokens", "6")


def run(model, *lines, options=SHORT):
    """Run the command in this process, with lines on standard input."""
    given = "".join(f"{line}\n" for line in lines)
    return CliRunner().invoke(chat, [str(model), *TORCH, *map(str, options)], input=given)


def refused(model, *lines, options=SHORT):
    """Return what the command says that ends it."""
    error = run(model, *lines, options=options).exception
    assert isinstance(error, TruthGPTError), error
    assert "\n" not in str(error)
    return str(error)


@pytest.fixture
def said(bare_plugins, model, tokenizer):
    """What the tiny model says after a text."""
    service = InferenceService(bare_plugins)
    service.configure(model, tokenizer)
    return lambda text, **options: service.generate(text, {"max_new_tokens": 6} | options)


def after(*messages):
    """The text that the template makes of messages, each a role and a content."""
    return "".join(f"<{role}>{content}\n" for role, content in messages) + "<assistant>"


def test_each_message_is_answered_with_what_was_said_before(chatty, said):
    """Standard output has the answers alone; their tokens and speed are beside it."""
    done = run(chatty, "One", "", "Two")
    first = said(after(("user", "One")))
    second = said(after(("user", "One"), ("assistant", first), ("user", "Two")))
    assert done.stdout == f"{first}\n{second}\n"
    assert done.stderr.count("6 tokens, ") == 2
    assert "tokens/s" in done.stderr
    assert " of 512" in done.stderr


def test_the_system_message_is_given_or_changed(chatty, said):
    """`/system` begins anew, and `/clear` does with the same; alone it shows it."""
    lines = ("One", "/system Be kind.", "/system", "Two", "/clear", "Two")
    done = run(chatty, *lines, options=(*SHORT, "--system", "Be short."))
    one = said(after(("system", "Be short."), ("user", "One")))
    two = said(after(("system", "Be kind."), ("user", "Two")))
    assert done.stdout == f"{one}\n{two}\n{two}\n"
    assert "\nBe kind.\n" in done.stderr


def test_regenerate_answers_with_the_next_seed(chatty, said):
    """In the place of the answer before."""
    lines = ("One", "/regenerate", "Two")
    done = run(chatty, *lines, options=(*SHORT, "--temperature", 1, "--seed", 7))
    one = said(after(("user", "One")), temperature=1.0, seed=7)
    again = said(after(("user", "One")), temperature=1.0, seed=8)
    two = after(("user", "One"), ("assistant", again), ("user", "Two"))
    assert done.stdout == f"{one}\n{again}\n{said(two, temperature=1.0, seed=8)}\n"


def test_that_regenerating_cannot_help_is_said(chatty):
    """At temperature 0 the answer is the same."""
    done = run(chatty, "One", "/regenerate")
    one, again = done.stdout.splitlines()
    assert one == again
    assert "The same answer again; with /set temperature 0.8 there are others." in done.stderr


def test_a_conversation_is_saved_and_goes_on(chatty, said, tmp_path):
    """With the system message, in the form that other programs read."""
    file = tmp_path / "said.json"
    run(chatty, "One", f"/save {file}", options=(*SHORT, "--system", "Be short."))
    first = said(after(("system", "Be short."), ("user", "One")))
    messages = [("system", "Be short."), ("user", "One"), ("assistant", first)]
    assert json.loads(file.read_text())["messages"] == [
        {"role": role, "content": content} for role, content in messages
    ]
    done = run(chatty, f"/load {file}", "Two")
    assert done.stdout == said(after(*messages, ("user", "Two"))) + "\n"
    assert f"2 messages from {file}." in done.stderr


def test_a_list_of_messages_is_loaded_and_its_last_question_answered(chatty, said, tmp_path):
    """As other programs write it."""
    file = tmp_path / "question.json"
    file.write_text('[{"role": "user", "content": "One"}]')
    done = run(chatty, f"/load {file}", "/regenerate")
    assert done.stdout == said(after(("user", "One"))) + "\n"
    assert "The last has no answer: /regenerate gives one." in done.stderr


def test_a_file_is_replaced_only_with_an_exclamation_mark(chatty, tmp_path):
    """Until then nothing has changed."""
    file = tmp_path / "said.json"
    file.write_text("mine")
    assert f"{file} exists. /save! {file} replaces it." in refused(chatty, "One", f"/save {file}")
    assert file.read_text() == "mine"
    run(chatty, "One", f"/save! {file}")
    assert len(json.loads(file.read_text())["messages"]) == 2


def test_a_full_disk_leaves_the_file_as_it_was(chatty, tmp_path, monkeypatch):
    """And nothing beside it."""
    file = tmp_path / "said.json"
    file.write_text("mine")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert "cannot be written: No space left" in refused(chatty, "One", f"/save! {file}")
    assert file.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("place", ["", "/dev/null", "no/such/directory/file", "link"])
def test_what_is_no_file_is_not_written_over(chatty, tmp_path, place):
    """Neither a directory, a device nor what a link leads to."""
    target = tmp_path / place
    if place == "link":
        target.symlink_to(tmp_path / "elsewhere")
    message = refused(chatty, "One", f"/save! {target}")
    assert "is not a regular file" in message or "cannot be written: No such file" in message
    assert [each.name for each in tmp_path.iterdir()] == (["link"] if place == "link" else [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("{}", "is not a list of messages"),
        ("[]", "has no message"),
        ('"text"', "is not a list of messages"),
        ('[{"role": "user"}]', 'message 0 has no text as "content"'),
        ('[{"role": 1, "content": "x"}]', 'message 0 has no text as "role"'),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "half a character"),
        ('{"messages": [{"role": "user", "content": "x"}], "compared": 5}', "is not a list"),
        (None, "No such file"),
    ],
)
def test_what_is_no_conversation_is_not_loaded(chatty, tmp_path, content, message):
    """In one line that names the file."""
    file = tmp_path / "said.json"
    if content is not None:
        file.write_text(content)
    said = refused(chatty, f"/load {file}")
    assert message in said
    assert str(file) in said


def test_two_models_answer_and_keep_their_own_conversations(chatty, tied, said, tmp_path):
    """From `/compare OTHER` on, each beginning with what was said before; `/compare` ends it."""
    other = shutil.copytree(tied, tmp_path / "other")
    tokenizer = load_tokenizer(other)
    tokenizer.chat_template = load_tokenizer(chatty).chat_template
    tokenizer.save_pretrained(other)
    file = tmp_path / "said.json"
    lines = ("One", f"/compare {other}", "Two", "Three", f"/save {file}", "/compare", "Four")
    done = run(chatty, *lines)
    assert done.exception is None
    saved = json.loads(file.read_text())
    ours, theirs = saved["messages"], saved["compared"]["messages"]
    assert (saved["model"], saved["compared"]["model"]) == (str(chatty), str(other))
    assert ours[:3] == theirs[:3]
    assert ours[3] != theirs[3]
    expected = [ours[1]["content"]]
    for number in (3, 5):
        expected += [f"{chatty}:", ours[number]["content"], f"{other}:", theirs[number]["content"]]
    fourth = [*((each["role"], each["content"]) for each in ours), ("user", "Four")]
    assert done.stdout == "\n".join([*expected, said(after(*fourth))]) + "\n"
    again = run(other, f"/compare {chatty}", f"/load {file}", "Go on")
    assert again.stdout.count(":\n") == 2


def test_an_option_is_set_for_the_answers_that_follow(chatty, said):
    """With the name that it has on the command line, too; `default` takes it back."""
    lines = ("/set max-new-tokens 3", "One", "/set max_new_tokens default", "/set", "/clear")
    done = run(chatty, *lines, "/set seed 5", "/set temperature 1", "/set max_new_tokens 6", "One")
    three = said(after(("user", "One")), max_new_tokens=3)
    six = said(after(("user", "One")), temperature=1.0, seed=5)
    assert done.stdout == f"{three}\n{six}\n"
    assert "max_new_tokens      1024 (default)" in done.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/hlep", 'There is no command "/hlep". Did you mean "/help"?'),
        ("/help me", "/help takes nothing after it"),
        ("/clear!", "/clear takes no exclamation mark"),
        ("/save", "/save needs more. Write /save FILE."),
        ("/save file", "There is no message yet that could be saved"),
        ("/regenerate", "There is no question yet"),
        ("/compare", "/compare needs a model"),
        ("/compare no/such/model", 'There is no model at "no/such/model"'),
        ("/set temprature 1", 'Did you mean "temperature"?'),
        ("/set temprature default", 'Did you mean "temperature"?'),
        ("/set temperature -1", "temperature is -1"),
        ("/set temperature", "/set temperature needs a value"),
        ("/set n 2", "n cannot be set in a chat"),
        ('"""unfinished', "no line comes after"),
        ("caf\udce9", "It is not UTF-8: byte 3 is 0xe9"),
    ],
)
def test_what_cannot_be_done_ends_a_script_in_one_line(chatty, line, message):
    """It says in which line, and how to put it right."""
    done = CliRunner().invoke(
        chat, [str(chatty), *TORCH], input=f"\n{line}\n".encode("utf-8", "surrogateescape")
    )
    assert isinstance(done.exception, TruthGPTError)
    assert str(done.exception).startswith("Line 2 of standard input: ")
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)
    assert done.stdout == ""


def test_help_lists_every_command_on_lines_that_fit(chatty):
    """With what is needed to type messages of several lines."""
    done = run(chatty, "/help")
    for name in ("system", "save", "load", "regenerate", "compare", "set", "clear", "exit"):
        assert f"\n/{name}" in done.stderr
    assert "triple quotes" in done.stderr
    assert max(map(len, done.stderr.splitlines())) < 80


def test_exit_ends_it(chatty):
    """What follows is not read."""
    assert run(chatty, "/exit", "One").stdout == ""
    assert run(chatty, "/quit", "One").stdout == ""


def test_a_conversation_that_outgrows_the_context_is_not_cut(chatty, tmp_path):
    """An answer has the room that is left; after that, one line says what to do."""
    done = run(chatty, "x " * 200, options=("--max-new-tokens", 400, "--min-new-tokens", 50))
    assert "Cut off: the context of the model is full. /clear begins anew" in done.stderr
    assert "context 512 of 512" in done.stderr
    message = refused(chatty, "One", "x " * 600)
    assert message.startswith("Line 2 of standard input: The message was not sent: with it the ")
    assert "holds 512. /clear begins anew, and /save FILE keeps what was said." in message


def test_an_answer_that_is_cut_off_says_how_to_have_more(chatty):
    """The number can be copied."""
    assert "Cut off: /set max_new_tokens 12 allows more." in run(chatty, "One").stderr


def test_a_model_without_a_chat_template_is_refused_before_its_weights_are_read(tiny, tmp_path):
    """With what to do in its place."""
    model = shutil.copytree(tiny, tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"")
    message = refused(model, "One")
    assert f"{model} has no chat template, so it cannot hold a conversation" in message
    assert f"truthgpt generate {model} --raw" in message


def test_a_system_message_that_the_template_refuses_is_refused_at_once(chatty, tmp_path):
    """On the command line, and with `/system`, where nothing changes."""
    model = shutil.copytree(chatty, tmp_path / "model")
    tokenizer = load_tokenizer(model)
    check = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = check + tokenizer.chat_template
    tokenizer.save_pretrained(model)
    assert "no system" in refused(model, options=("--system", "Be short."))
    assert "Line 1 of standard input" in refused(model, "/system Be short.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument 'MODEL'"),
        (("a", "--url", "http://x"), "are two models"),
        (("a", "--model", "b"), "--model names a model at --url"),
        (("--url", "http://x#a", "--model", "b"), "The URL names a model, and so does --model"),
        (("a", "--temperature", "nan"), "--temperature"),
        (("a", "--stop", ""), "--stop is empty"),
        (("a", "--min-new-tokens", "9", "--max-new-tokens", "8"), "min_new_tokens is 9"),
        (("a", "-o", "seed=1"), "write --seed instead"),
    ],
)
def test_a_wrong_option_is_a_usage_error_before_anything_is_loaded(arguments, message):
    """The model need not even be there."""
    done = CliRunner().invoke(chat, list(arguments))
    assert done.exit_code == 2, done.output
    assert message in done.stderr


@pytest.mark.parametrize("arguments", [("--url", "http://127.0.0.1:9/v1"), ("openai:http://x",)])
def test_a_url_needs_a_plugin_and_says_which(only_services, arguments, monkeypatch):
    """One line, with what to install."""
    monkeypatch.setattr(application, "_default", application.Application())
    done = CliRunner().invoke(chat, list(arguments))
    assert isinstance(done.exception, TruthGPTError)
    assert "pip install truthgpt-plugin-openai" in str(done.exception)


def test_the_inference_service_of_a_plugin_answers(only_services, chatty, monkeypatch):
    """The second model's is of the same class."""
    asked = []

    class Noting(InferenceService):
        def stream(self, prompt, options=None):
            asked.append(self)
            return super().stream(prompt, options)

    ours = application.Application()
    ours.plugins.activate_all()
    service = Noting(ours.plugins, ours.events)
    ours.container.register("inference_service", service, replace=True)
    monkeypatch.setattr(application, "_default", ours)
    run(chatty, "One", f"/compare {chatty}", "Two")
    assert [type(each) for each in asked] == [Noting] * 3
    assert asked[0] is asked[1] is service
    assert asked[2] is not service


def test_an_option_that_nothing_knows_is_refused_before_the_first_message(chatty):
    """And not when the first is sent."""
    assert "There is no option" in refused(chatty, options=("-o", "nothing=1"))
