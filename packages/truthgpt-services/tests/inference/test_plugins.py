"""Engines, decoders, logits processors and caches of plugins, from outside, through the command."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PLUGINS = Path(__file__).parent / "plugins"
NAMES = sorted(path.stem for path in PLUGINS.glob("*.py"))
PROMPT = "a b c d a b c d a b c d a b"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install one of the plugins as a distribution that needs the core alone."""

    def install(name: str) -> None:
        site = tmp_path / f"site-{name}"
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{name}.py").write_text((PLUGINS / f"{name}.py").read_text())
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n"
            "Requires-Dist: truthgpt-core>=0.1,<0.2\n"
        )
        (info / "entry_points.txt").write_text(f"[truthgpt.plugins]\n{name} = {name}\n")
        monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")

    return install


@pytest.fixture
def generate(truthgpt, tiny):
    """Run `truthgpt generate` on the tiny model, and return what it says as JSON."""

    def run(*options: str, prompt: str = PROMPT, tokens: int = 24) -> dict:
        arguments = ["--raw", "--device", "cpu", "--max-new-tokens", tokens, "--json", *options]
        done = truthgpt("generate", tiny, prompt, *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.parametrize("name", NAMES)
def test_a_plugin_of_inference_is_short_and_needs_the_core_alone(name):
    """Under 60 lines, and nothing of the services is imported."""
    code = (PLUGINS / f"{name}.py").read_text()
    assert len(code.splitlines()) < 60
    assert "truthgpt_services" not in code


def test_prompt_lookup_writes_the_same_text(generate, installed):
    """A decoder that takes back what was wrong gives what greedy decoding gives."""
    plain = generate()
    installed("prompt_lookup")
    assert generate("--option", "prompt_lookup=4")["text"] == plain["text"]


def test_a_logits_processor_has_an_option_of_its_own(generate, installed):
    """`--option ban=ID` is offered to it, and the token does not come."""
    plain = generate()["tokens"]["generated_ids"]
    installed("banning")
    banned = generate("--option", f"ban={plain[0]}")["tokens"]["generated_ids"]
    assert plain[0] not in banned
    assert generate()["tokens"]["generated_ids"] == plain


def test_the_cache_of_a_plugin_is_what_the_model_writes_to(
    generate, installed, tmp_path, monkeypatch
):
    """Each pass writes to every layer of it, and the text is the same."""
    plain = generate(tokens=6)["text"]
    notes = tmp_path / "notes"
    monkeypatch.setenv("NOTES", str(notes))
    installed("noting_cache")
    assert generate(tokens=6)["text"] == plain
    assert len(notes.read_text().splitlines()) >= 6


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict]]]:
    """Serve completions as OpenAI does; yield the address and the requests that came."""
    asked: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            self.send_response(200)
            self.end_headers()
            for word in ("Paris", " it", " is"):
                piece = {"delta": {"content": word}} if "messages" in body else {"text": word}
                self.wfile.write(f"data: {json.dumps({'choices': [piece]})}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    served = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}/v1", asked
    served.shutdown()
    served.server_close()
    thread.join()


@pytest.mark.parametrize("raw", [True, False])
def test_an_engine_forwards_to_a_server(truthgpt, tiny, installed, server, raw):
    """The text is the server's, the model's weights are not read, and a chat stays a chat."""
    url, asked = server
    installed("remote_engine")
    options = ["--option", f"url={url}", "--max-new-tokens", 5, *(["--raw"] if raw else [])]
    done = truthgpt("generate", tiny, "Where?", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Paris it is\n"
    (body,) = asked
    assert body["max_tokens"] == 5
    if raw:
        assert body["prompt"] == "Where?"
    else:
        assert body["messages"] == [{"role": "user", "content": "Where?"}]


@pytest.mark.parametrize(
    ("name", "option", "said"),
    [
        ("prompt_lookup", "prompt_lookup=4", 'The option "prompt_lookup" needs logits'),
        ("banning", "ban=3", 'The option "ban" needs logits'),
    ],
)
def test_what_an_engine_cannot_do_is_refused_by_name(
    truthgpt, tiny, installed, server, name, option, said
):
    """Before a request is made, the error names the option and the engine."""
    url, asked = server
    installed("remote_engine")
    installed(name)
    done = truthgpt("generate", tiny, "Where?", "--option", f"url={url}", "--option", option)
    assert done.returncode == 1
    assert f"{said}, which the engine remote does not give" in done.stderr
    assert asked == []


def test_an_unknown_option_is_refused(truthgpt, tiny, installed):
    """The error suggests what was meant."""
    installed("banning")
    done = truthgpt("generate", tiny, "x", "--raw", "--option", "bann=3", "--device", "cpu")
    assert done.returncode == 1
    assert 'There is no option "bann" for generating. Did you mean "ban"?' in done.stderr
