"""What docs/serving.md shows works."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from running import Running

DOCS = Path(__file__).parents[3] / "docs" / "serving.md"


@pytest.fixture
def text(server: Running) -> str:
    """The guide, with the address and the model of this server."""
    found = DOCS.read_text(encoding="utf-8")
    return found.replace("http://127.0.0.1:8000", server.root).replace('"demo"', '"tiny"')


def test_the_curl_line_gets_an_answer(text: str) -> None:
    """As it stands there."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (line,) = re.findall(r"^    (curl .*)$", text, re.MULTILINE)
    done = subprocess.run(
        ["curl", "--silent", "--show-error", *shlex.split(line)[1:]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(done.stdout)["choices"][0]["message"]["role"] == "assistant", done.stderr


def test_the_python_example_streams(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With the official client."""
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, "docs/serving.md", "exec"), {})
    assert capsys.readouterr().out


def test_the_guide_names_every_option(text: str) -> None:
    """Of keys, limits and time; those that are for the engine are `truthgpt serve --help`'s."""
    for name in (
        *("--max-batch-size", "--max-waiting", "--request-timeout", "--send-timeout"),
        "--drain-timeout",
        *("--default-max-tokens", "--response-cache", "--insecure", "--no-check", "--log-prompts"),
        *("--on ray", "--replicas", "--engine"),
    ):
        assert name in text, name
