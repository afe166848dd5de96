"""`truthgpt generate`: where the prompt comes from, what is done with it, and what is printed."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import threading

import pytest
from click.testing import CliRunner

from truthgpt_core.errors import TruthGPTError
from truthgpt_services import InferenceService
from truthgpt_services.commands import prompt_input
from truthgpt_services.commands.generate import generate
from truthgpt_services.commands.prompt_input import read_prompt_text
from truthgpt_services.models.loading import load_tokenizer

PROMPT = "The import statement"
SHORT = ("--max-new-tokens", "6")


def run(*arguments, given=b""):
    """Run the command in this process, with bytes on standard input."""
    return CliRunner().invoke(generate, [*map(str, arguments), *SHORT], input=given)


@pytest.fixture
def continued(bare_plugins, model, tokenizer):
    """What the tiny model says after a text."""
    service = InferenceService(bare_plugins)
    service.configure(model, tokenizer)
    return lambda text, **options: service.generate(text, {"max_new_tokens": 6} | options)


def test_a_model_with_a_template_is_asked_and_answers(chatty, continued):
    """The answer alone is printed; `--raw` continues the prompt, `--system` comes before it."""
    asked = run(chatty, PROMPT)
    assert asked.stdout == continued(f"<user>{PROMPT}\n<assistant>") + "\n"
    raw = run(chatty, PROMPT, "--raw")
    assert raw.stdout == continued(PROMPT) + "\n"
    told = run(chatty, PROMPT, "--system", "Be short.")
    prompt = f"<system>Be short.\n<user>{PROMPT}\n<assistant>"
    assert told.stdout == continued(prompt) + "\n"


def test_a_model_without_a_template_continues(tiny, continued):
    """There is nothing to apply, and nothing that could take a system message."""
    assert run(tiny, PROMPT).stdout == continued(PROMPT) + "\n"
    refused = run(tiny, PROMPT, "--system", "Be short.").exception
    assert isinstance(refused, TruthGPTError)
    assert "no chat template" in str(refused)


def test_json_says_what_was_done(chatty, continued):
    """Text, tokens, why it ended, how long it took, and whether the template was used."""
    said = json.loads(run(chatty, PROMPT, "--json").stdout)
    prompt = f"<user>{PROMPT}\n<assistant>"
    assert (said["chat_template"], said["prompt"]) == (True, prompt)
    assert said["text"] == continued(prompt)
    assert said["finish_reason"] == "length"
    assert said["tokens"]["generated"] == len(said["tokens"]["generated_ids"]) == 6
    assert said["tokens"]["prompt"] == len(said["tokens"]["prompt_ids"])
    assert 0 < said["timings"]["first_token_seconds"] <= said["timings"]["seconds"]
    assert said["timings"]["load_seconds"] > 0
    assert said["timings"]["tokens_per_second"] > 0
    assert json.loads(run(chatty, PROMPT, "--raw", "--json").stdout)["chat_template"] is False


def test_a_stop_string_ends_the_text_and_is_not_printed(tiny, continued):
    """The first of several that appears."""
    whole = continued(PROMPT)
    stop = whole[3:5]
    done = run(tiny, PROMPT, "--stop", "never said", "--stop", stop, "--json")
    said = json.loads(done.stdout)
    assert said["text"] == whole[: whole.index(stop)]
    assert (said["finish_reason"], said["stopped_by"]) == ("stop_sequence", stop)


def test_that_nothing_was_generated_is_said_on_standard_error(tiny, continued):
    """An empty answer does not look like a command that does nothing."""
    done = run(tiny, PROMPT, "--stop", continued(PROMPT)[0])
    assert done.exit_code == 0
    assert done.stdout == "\n"
    assert "Nothing was generated" in done.stderr


def test_the_prompt_comes_from_a_pipe_or_a_file(tiny, tmp_path, continued):
    """`-`, no argument, `-f FILE` and `-f -` read it, without its last line break."""
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"\xef\xbb\xbf" + PROMPT.encode() + b"\r\n")
    expected = continued(PROMPT) + "\n"
    given = PROMPT.encode() + b"\n"
    for arguments in ((), ("-",), ("-f", "-"), ("-f", file)):
        assert run(tiny, *arguments, given=given).stdout == expected, arguments
    both = run(tiny, "-f", file, "and").stdout
    assert both == continued(f"{PROMPT}\n\nand") + "\n"


def test_a_prompt_that_is_given_leaves_standard_input_alone(monkeypatch):
    """A loop over the lines of a file goes on to the next one."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"next line")))
    assert read_prompt_text("this one", None) == "this one"
    assert read_prompt_text("-", None) == "next line"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Caf\xe9", "is not UTF-8: byte 3 is 0xe9. Convert it"),
        ("x".encode("utf-16"), "is not UTF-8: byte 0 is 0xff"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"x" * (prompt_input.LARGEST + 1), "has more than 16 MiB"),
    ],
    ids=["latin1", "utf16", "empty", "line break", "large"],
)
def test_what_is_no_prompt_is_one_line(tmp_path, content, message):
    """Before anything is loaded, and with what to do about it."""
    file = tmp_path / "prompt.txt"
    file.write_bytes(content)
    with pytest.raises(TruthGPTError, match=message) as refused:
        read_prompt_text(None, str(file))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is a directory"),
        ("none.txt", "No such file"),
        ("a\0b", "cannot be read"),
        ("x" * 5000, "File name too long"),
        ("\x1b[31m", r"\\x1b\[31m cannot be read"),
    ],
    ids=["directory", "missing", "null", "long", "escape"],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, name, message):
    """Whatever is in its place."""
    with pytest.raises(TruthGPTError, match=message):
        read_prompt_text(None, f"{tmp_path}/{name}")


def test_a_named_pipe_is_read_and_one_without_a_writer_is_not_waited_for(tmp_path, monkeypatch):
    """`-f <(command)` works, and a pipe that was forgotten does not hang."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text("from a pipe\n"))
    writer.start()
    assert read_prompt_text(None, str(pipe)) == "from a pipe"
    writer.join()
    monkeypatch.setattr(prompt_input, "SECONDS_FOR_A_WRITER", 0.01)
    with pytest.raises(TruthGPTError, match="a pipe that nothing is written to"):
        read_prompt_text(None, str(pipe))


def test_a_device_that_never_ends_is_refused():
    """It is read up to a limit."""
    with pytest.raises(TruthGPTError, match="more than 16 MiB"):
        read_prompt_text(None, "/dev/zero")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--temperature", "inf"),
        ("--top-p", "2"),
        ("--top-p", "0"),
        ("--top-p", "nan"),
        ("--top-k", "-3"),
        ("--top-k", "1.5"),
        ("--max-new-tokens", "0"),
        ("--max-new-tokens", "-1"),
        ("--seed", str(2**64)),
        ("--min-new-tokens", "-1"),
        ("--min-p", "1.5"),
        ("--repetition-penalty", "0"),
        ("--presence-penalty", "3"),
        ("--frequency-penalty", "nan"),
        ("--logit-bias", "5"),
        ("--logit-bias", "a=1"),
        ("--logprobs", "1001", "--json"),
        ("--logprobs", "1"),
        ("--prompt-logprobs", "1"),
        ("--stop", ""),
        ("--raw", "--system", "x"),
    ],
)
def test_a_wrong_option_is_a_usage_error_before_anything_is_loaded(arguments):
    """The model need not even be there."""
    done = CliRunner().invoke(generate, ["no/such/model", "x", *arguments])
    assert done.exit_code == 2, done.output
    assert arguments[0] in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--min-new-tokens", "9", "--max-new-tokens", "8"), "min_new_tokens is 9"),
        (("--logit-bias", "5=101"), "logit_bias of 5 is 101"),
        (("--json-schema", "{"), "json_schema is not JSON"),
        (("--json-schema", "{}", "--regex", "a"), "an answer has one form"),
    ],
)
def test_options_that_do_not_go_together_are_a_usage_error(arguments, message):
    """What the service would refuse is refused before anything is loaded."""
    done = CliRunner().invoke(generate, ["no/such/model", "x", *arguments])
    assert done.exit_code == 2, done.output
    assert message in done.stderr


def test_log_probabilities_are_printed_as_json(tiny):
    """Of each token of prompt and answer: id, text, logarithm, and the likeliest beside it."""
    done = run(tiny, PROMPT, "--json", "--logprobs", 2, "--prompt-logprobs", 0)
    said = json.loads(done.stdout)
    assert [each["token"] for each in said["logprobs"]] == said["tokens"]["generated_ids"]
    assert "".join(each["text"] for each in said["logprobs"]) == said["text"]
    for each in said["logprobs"]:
        # At temperature 0 the likeliest is taken.
        assert each["top"][0] == {name: each[name] for name in ("token", "text", "logprob")}
        assert len(each["top"]) == 2
    assert [each["token"] for each in said["prompt_logprobs"]] == said["tokens"]["prompt_ids"]
    assert [each["logprob"] is None for each in said["prompt_logprobs"]][:2] == [True, False]
    assert "logprobs" not in json.loads(run(tiny, PROMPT, "--json").stdout)


def test_a_schema_is_read_from_a_file_or_from_the_command_line(tiny, tmp_path):
    """What begins with a brace is the schema itself."""
    schema = '{"enum": ["yes", "no"]}'
    (tmp_path / "answer.json").write_text(schema)
    for given in (schema, tmp_path / "answer.json"):
        done = CliRunner().invoke(generate, [str(tiny), PROMPT, "--json-schema", str(given)])
        assert done.stdout in ('"yes"\n', '"no"\n')


def test_a_text_can_have_to_match_an_expression(tiny):
    """As a whole."""
    done = CliRunner().invoke(generate, [str(tiny), PROMPT, "--regex", "[a-f]{3}[0-9]"])
    assert re.fullmatch("[a-f]{3}[0-9]\n", done.stdout)


def test_a_text_can_have_to_be_a_sentence_of_a_grammar(tiny, tmp_path):
    """Which is in a file."""
    (tmp_path / "sum.lark").write_text('start: NUMBER "+" NUMBER\nNUMBER: /[1-9][0-9]?/\n')
    grammar = str(tmp_path / "sum.lark")
    done = CliRunner().invoke(generate, [str(tiny), PROMPT, "--grammar", grammar])
    assert re.fullmatch(r"[1-9][0-9]?\+[1-9][0-9]?\n", done.stdout)


def test_options_reach_the_model(tiny, continued):
    """Each does what the option of the service does."""
    first = json.loads(run(tiny, PROMPT, "--json").stdout)["tokens"]["generated_ids"][0]
    options = {
        "logit_bias": {first: -100.0},
        "repetition_penalty": 1.5,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "min_new_tokens": 6,
        "temperature": 0.9,
        "min_p": 0.1,
        "seed": 3,
    }
    arguments = ["--logit-bias", f"{first}=-100"]
    for name, value in list(options.items())[1:]:
        arguments += ["--" + name.replace("_", "-"), value]
    said = json.loads(run(tiny, PROMPT, "--json", *arguments).stdout)
    assert said["text"] == continued(PROMPT, **options)
    assert first not in said["tokens"]["generated_ids"]


def test_what_is_not_given_is_as_the_model_suggests(tiny, tmp_path, continued):
    """And what is given counts more."""
    model = shutil.copytree(tiny, tmp_path / "model")
    config = json.loads((model / "generation_config.json").read_text())
    config |= {"do_sample": True, "temperature": 0.9, "top_k": 5}
    (model / "generation_config.json").write_text(json.dumps(config))
    suggested = continued(PROMPT, temperature=0.9, top_k=5)
    assert run(model, PROMPT, "--engine", "torch").stdout == suggested + "\n"
    greedy = run(model, PROMPT, "--engine", "torch", "--temperature", 0)
    assert greedy.stdout == continued(PROMPT, temperature=0.0) + "\n"


def test_that_no_template_was_applied_is_said(chatty, tiny):
    """In one line on standard error, where the model has one."""
    assert "template of the model was not applied" in run(chatty, PROMPT, "--raw").stderr
    assert run(chatty, PROMPT).stderr.count("template") == 0
    assert run(tiny, PROMPT, "--raw").stderr.count("template") == 0


def test_no_prompt_at_a_terminal_is_a_usage_error(truthgpt):
    """Nobody wonders what the command waits for."""
    ours, theirs = pty.openpty()
    done = truthgpt("generate", "no/such/model", stdin=theirs)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 2
    assert "Missing argument 'PROMPT'" in done.stderr


def test_a_prompt_that_is_too_long_is_refused_before_the_weights_are_read(tiny, tmp_path):
    """The configuration and the tokenizer are enough to know."""
    model = shutil.copytree(tiny, tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"")
    refused = run(model, "x " * 600).exception
    assert isinstance(refused, TruthGPTError)
    assert "the model holds 512" in str(refused)


def test_a_template_that_refuses_is_one_line(chatty, tmp_path):
    """What the template says is passed on, with the way around it."""
    model = shutil.copytree(chatty, tmp_path / "model")
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = "{{ raise_exception('no users\nhere') }}"
    tokenizer.save_pretrained(model)
    refused = run(model, PROMPT).exception
    assert isinstance(refused, TruthGPTError)
    assert "no users here" in str(refused)
    assert "--raw" in str(refused)


def test_on_a_terminal_the_prompt_is_echoed_only_when_it_is_continued(
    chatty, continued, monkeypatch
):
    """Text that goes on is read with its beginning; an answer stands alone."""
    monkeypatch.setattr("truthgpt_services.commands.generate._is_terminal", lambda: True)
    assert run(chatty, PROMPT, "--raw").stdout == PROMPT + continued(PROMPT) + "\n"
    assert run(chatty, PROMPT).stdout == continued(f"<user>{PROMPT}\n<assistant>") + "\n"


def test_a_terminal_never_gets_control_characters_of_a_text(tiny, monkeypatch):
    """Neither those of a prompt nor those that a model writes."""
    monkeypatch.setattr("truthgpt_services.commands.generate._is_terminal", lambda: True)
    shown = run(tiny, "a\x1b[31mb\tc\nd", "--raw").stdout
    assert shown.startswith("a\\x1b[31mb\tc\nd")


def test_several_texts_are_those_of_the_seeds_that_follow(tiny, continued):
    """Lines of --- are between them, and as JSON they are a list."""
    options = ("--temperature", "1", "--seed", "4", "-n", "3")
    texts = [continued(PROMPT, temperature=1.0, seed=seed) for seed in (4, 5, 6)]
    assert run(tiny, PROMPT, *options).stdout == "\n---\n".join(texts) + "\n"
    found = json.loads(run(tiny, PROMPT, *options, "--json").stdout)
    assert [each["text"] for each in found] == texts


def test_that_a_text_was_cut_before_it_had_its_form_is_said(tiny):
    """It would be taken for what was asked for."""
    found = run(tiny, PROMPT, "--regex", "[ab]{50}")
    assert len(found.stdout) > 1
    assert "does not have the form that was asked for" in found.stderr
