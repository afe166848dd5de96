"""`truthgpt` with models behind a URL."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from openai_server import Handler, Server, serving, with_models

# One worker imports torch for the commands of all.
pytestmark = pytest.mark.xdist_group("command")


def truthgpt(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command, with text on standard input."""
    command = [sys.executable, str(Path(sys.executable).with_name("truthgpt")), *arguments]
    return subprocess.run(
        command, input=given, capture_output=True, text=True, check=False, timeout=120
    )


def answer(handler: Handler) -> None:
    """Answer with what was asked."""
    body = handler.body
    asked = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    handler.begin_stream()
    handler.send_text(f"You said {asked!r}")
    handler.send_text(".", "stop")
    handler.end_stream()


@pytest.fixture(scope="module", autouse=True)
def processes_begin_warm(warm_processes: ModuleType) -> None:
    """Let the commands begin with torch imported."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with a model."""
    with serving(with_models(answer, "parrot")) as server:
        yield server


def test_a_batch_has_several_requests_under_way(tmp_path: Path) -> None:
    """As many as `--max-batch-size` says, and the answers are in the order of the prompts."""
    together = threading.Barrier(4)

    def respond(handler: Handler) -> None:
        # Broken, it is an error of each request.
        together.wait(60)
        answer(handler)

    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"p{each}"}) + "\n" for each in range(8)))
    with serving(with_models(respond, "parrot")) as server:
        done = truthgpt(
            *("batch", f"openai:{server.url}#parrot", str(prompts), "-o", str(output)),
            *("--max-batch-size", "4"),
        )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [each["text"] for each in found] == [f"You said 'p{each}'." for each in range(8)]
    assert found[0]["tokens"] == {"prompt": None, "generated": None}


def test_a_prompt_is_answered(server: Server) -> None:
    """As a conversation, with the generation options in the request."""
    done = truthgpt(
        *("generate", f"openai:{server.url}#parrot", "Hello", "--system", "Be kind."),
        *("--temperature", "0.5", "--top-k", "7", "--option", "extra_fields=top_k"),
    )
    assert (done.returncode, done.stdout) == (0, "You said 'Hello'.\n"), done.stderr
    path, _, body = server.requests[-1]
    assert path == "/v1/chat/completions"
    assert body["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
    ]
    assert (body["temperature"], body["top_k"]) == (0.5, 7)


def test_a_raw_prompt_is_continued(server: Server) -> None:
    """By `/completions`, with the text as it is."""
    done = truthgpt("generate", f"openai:{server.url}", "--raw", "Hello", "--json")
    assert json.loads(done.stdout)["text"] == "You said 'Hello'."
    assert server.requests[-1][0] == "/v1/completions"


@pytest.mark.parametrize("name", ["eval", "export"])
def test_what_needs_the_weights_is_refused(server: Server, name: str, tmp_path: Path) -> None:
    """In one sentence, before anything is asked."""
    asked = len(server.requests)
    output = [str(tmp_path / "out")] if name == "export" else []
    done = truthgpt(name, f"openai:{server.url}", *output)
    assert done.returncode == 1
    assert "has no files on this machine that could be loaded (openai)" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(server.requests) == asked


def test_another_engine_cannot_run_it(server: Server) -> None:
    """It needs files, and says so."""
    done = truthgpt("generate", f"openai:{server.url}", "Hello", "--engine", "torch")
    assert done.returncode == 1
    assert "has no files on this machine" in done.stderr


@pytest.mark.parametrize("name", [(), ("--model", "parrot")])
def test_a_conversation_is_sent_with_each_message(server: Server, name: tuple[str, ...]) -> None:
    """`truthgpt chat --url` talks with the only model, or with one that is named."""
    done = truthgpt(
        *("chat", "--url", server.url, *name, "--system", "Be kind."), given="Hello\nAgain\n"
    )
    assert (done.returncode, done.stdout) == (0, "You said 'Hello'.\nYou said 'Again'.\n")
    assert "first after " in done.stderr
    path, _, body = server.requests[-1]
    assert path == "/v1/chat/completions"
    assert body["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "You said 'Hello'."},
        {"role": "user", "content": "Again"},
    ]
    assert body["max_tokens"] == 1024


def test_a_chat_with_a_model_that_the_server_lacks_is_refused(server: Server) -> None:
    """In one sentence, with what it has."""
    done = truthgpt("chat", "--url", server.url, "--model", "parott")
    assert done.returncode == 1
    assert 'has no model "parott". Did you mean "parrot"?' in done.stderr


def test_a_chat_with_a_server_that_breaks_off_says_so() -> None:
    """In which line the message was, too."""

    def broken(handler: Handler) -> None:
        handler.begin_stream()
        handler.send_text("You sa")
        handler.end_stream()

    with serving(with_models(broken, "parrot")) as server:
        done = truthgpt("chat", "--url", server.url, given="Hello\n")
    assert (done.returncode, done.stdout) == (1, "You sa\n")
    assert "Line 1 of standard input: " in done.stderr
    assert "broke the answer off" in done.stderr
