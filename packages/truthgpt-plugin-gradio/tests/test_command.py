"""`truthgpt demo`, as it is typed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import ask_and_wait, cards, open_page

if TYPE_CHECKING:
    from playwright.sync_api import Page

TRUTHGPT = (sys.executable, str(Path(sys.executable).with_name("truthgpt")))
EXAMPLE = Path(__file__).parents[3] / "examples" / "demo_gradio_llm.py"

# One worker has the models.
pytestmark = pytest.mark.xdist_group("page")


def demo(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command where it ends by itself."""
    command = [*TRUTHGPT, "demo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@contextmanager
def running(*command: object) -> Iterator[str]:
    """Start a command that serves the page; return its address; interrupt it as the user does."""
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        said = next((line for line in lines if line.startswith("http")), "")
        assert "has the page" in said, process.communicate()[1]
        yield said.split()[0]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.communicate()


def get(address: str, **headers: str) -> tuple[int, str]:
    """Return the status and the text of an answer."""
    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_an_optimized_model_brings_its_base(base: Path, optimized: Path, tab: Page) -> None:
    """One directory is enough: the model that it was made from is beside it."""
    with running(*TRUTHGPT, "demo", optimized, "--port", 0) as address:
        open_page(tab, address)
        found = [tab.locator(f"#{each} input").input_value() for each in ("base", "optimized")]
        assert found == [str(base), str(optimized)]
        assert all(ask_and_wait(tab, "Hello"))
        assert "engine torch" in cards(tab)[0].inner_text()


def test_the_page_is_for_this_machine_alone(optimized: Path) -> None:
    """It is served at 127.0.0.1, counts nothing, and answers to no other name that leads here."""
    with running(*TRUTHGPT, "demo", optimized, "--port", 0) as address:
        assert address.startswith("http://127.0.0.1:")
        status, page = get(address)
        assert status == 200
        assert '"analytics_enabled":false' in page.replace(" ", "")
        assert get(address, Host="attacker.example")[0] == 400
        port = int(address.rpartition(":")[2])
        # Another address of this machine.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=60)


def test_the_example_serves_the_page(base: Path, optimized: Path) -> None:
    """The script that users read runs."""
    with running(sys.executable, EXAMPLE, base, optimized) as address:
        assert get(address)[0] == 200


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        ([], "Missing argument", 2),
        (["nowhere", "nothing"], "nowhere", 1),
        (["{base}"], "is the only model, and was not made by `truthgpt optimize`", 2),
        (["{base}", "{base}"], "is the only model", 2),
        (["{base}", "{optimized}", "--engine", "xyzzy"], 'No engine named "xyzzy" runs', 1),
        (["{base}", "{optimized}", "--run-dir", "{base}"], "it has no metrics.jsonl", 1),
        (["{base}", "{optimized}", "--port", "{taken}"], "Address already in use", 1),
        (["{base}", "{optimized}", "--host", "192.0.2.1"], "cannot be served at 192.0.2.1", 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_served_is_one_error(
    base: Path, optimized: Path, arguments: Sequence[str], said: str, code: int
) -> None:
    """Before the page is there, in a sentence that says what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        known = {"base": base, "optimized": optimized, "taken": taken.getsockname()[1]}
        done = demo(*(each.format(**known) for each in arguments))
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.new_process
@pytest.mark.parametrize("arguments", [["demo", "--help"], ["--help"], ["demo"]], ids=" ".join)
def test_looking_around_imports_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    """Help and a slip on the command line need neither torch nor gradio."""
    script = (
        "import json, sys\n"
        "from truthgpt_core.cli.main import main\n"
        "try:\n    main()\nfinally:\n"
        "    heavy = {'torch', 'transformers', 'gradio', 'fastapi', 'uvicorn'} & set(sys.modules)\n"
        "    open(sys.argv.pop(), 'w').write(json.dumps(sorted(heavy)))"
    )
    trace = tmp_path / "trace"
    subprocess.run(
        [sys.executable, "-c", script.replace("sys.argv.pop()", repr(str(trace))), *arguments],
        capture_output=True,
        check=False,
        timeout=120,
        env=os.environ,
    )
    assert json.loads(trace.read_text()) == []
