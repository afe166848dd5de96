"""`truthgpt serve`: what it refuses before a model is loaded."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from truthgpt_core.errors import TruthGPTError
from truthgpt_plugin_serve.command import serve
from truthgpt_plugin_serve.served_model import split_names
from truthgpt_plugin_serve.server import bind


def refusal(*arguments: str) -> str:
    """Return what the command says, which does not start a server."""
    done = CliRunner().invoke(serve, arguments)
    assert done.exit_code != 0
    if isinstance(done.exception, TruthGPTError):
        return str(done.exception)
    return done.output


def test_another_address_needs_keys(tiny: Path) -> None:
    """Anyone who reaches the machine could use the models."""
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.com"):
        assert "truthgpt serve keys add" in refusal(str(tiny), "--host", host)


def test_a_file_without_keys_is_no_lock(tiny: Path, tmp_path: Path) -> None:
    """It is said, and no server is started that nobody can use."""
    file = tmp_path / "keys.json"
    said = refusal(str(tiny), "--keys", str(file))
    assert "has no API keys" in said
    assert f"truthgpt serve keys add NAME --file {file}" in said


def test_a_port_that_is_taken_is_said_before_the_model_is_loaded(tiny: Path) -> None:
    """With how to take another."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = refusal(str(tiny), "--port", str(taken.getsockname()[1]))
    assert "cannot be listened at" in said
    assert "--port" in said


def test_clients_that_come_while_models_are_loaded_wait() -> None:
    """They are not refused: the address is listened at from the beginning."""
    with bind("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        pass


def test_a_model_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    """As with every other command."""
    said = refusal(str(tmp_path / "nothing"), "--port", "0")
    assert "nothing" in said
    assert "Traceback" not in said


def test_models_are_called_after_their_path_or_as_the_user_says(tmp_path: Path) -> None:
    """Two of one name are refused."""
    directory = tmp_path / "a=b"
    directory.mkdir()
    given = ["build/demo/", "small=org/model-3b", "package:pkg/x.gguf", str(directory)]
    given.append("openai:http://127.0.0.1:8000/v1#m")
    assert split_names(given) == {
        "demo": "build/demo/",
        "small": "org/model-3b",
        "x": "package:pkg/x.gguf",
        "a=b": str(directory),
        "v1": "openai:http://127.0.0.1:8000/v1#m",
    }
    with pytest.raises(TruthGPTError, match=r'Two models are called "demo".*NAME=MODEL'):
        split_names(["a/demo", "b/demo"])


def test_traces_need_their_packages(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the environment asks for them, their absence is an error and not silence."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert "truthgpt-plugin-serve[otel]" in refusal(str(tiny), "--port", "0")


def test_help_imports_neither_torch_nor_fastapi() -> None:
    """It comes at once, with the group of keys."""
    code = (
        "import sys\nfrom click.testing import CliRunner\n"
        "from truthgpt_plugin_serve.command import serve\n"
        "print(CliRunner().invoke(serve, ['--help']).output)\n"
        "print(CliRunner().invoke(serve, ['keys', '--help']).output)\n"
        "print({'torch', 'fastapi', 'transformers'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")
    assert "--drain-timeout" in done.stdout
    assert re.search(r"add .*list .*revoke", done.stdout, re.DOTALL)
