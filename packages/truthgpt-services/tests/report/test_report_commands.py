"""What a user can rely on in what the commands print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from truthgpt_services.commands.compare import compare
from truthgpt_services.commands.evaluate import evaluate
from truthgpt_services.commands.optimize import optimize
from truthgpt_services.report.files import write_report

pytestmark = pytest.mark.slow

COMMAND = "from truthgpt_services.commands.evaluate import evaluate; evaluate()"


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    """A place with an installed plugin that prints when it is imported."""
    place = tmp_path / "site"
    metadata = place / "noisy-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: noisy\nVersion: 1.0\nRequires-Dist: truthgpt-core\n"
    )
    (metadata / "entry_points.txt").write_text("[truthgpt.plugins]\nnoisy = noisy\n")
    (place / "noisy.py").write_text('print("hello from a plugin")\n')
    return place


@pytest.mark.new_process
def test_eval_json_is_json_whatever_a_plugin_prints(tiny, noisy):
    """Another program can read standard output as it is; the greeting is on standard error."""
    path = os.pathsep.join([str(noisy), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    done = subprocess.run(
        [sys.executable, "-P", "-c", COMMAND, str(tiny), "--rounds", "2", "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["variants"][0]["name"] == "baseline"
    assert "hello from a plugin" in done.stderr


def test_compare_json_is_json_and_nothing_else(samples, tmp_path):
    """Warnings are part of the data, and not lines before it."""
    write_report(samples.costly_report(), tmp_path / "a")
    write_report(samples.quick_report(), tmp_path / "b")
    done = CliRunner().invoke(compare, [str(tmp_path / "a"), str(tmp_path / "b"), "--json"])
    assert (
        "B was not measured closely enough to compare speeds."
        in json.loads(done.stdout)["warnings"]
    )


@pytest.mark.parametrize("command", [optimize, evaluate, compare])
def test_the_help_uses_the_words_of_the_report(command):
    """A step is accepted or rejected; nothing is kept, taken back or repaid."""
    text = CliRunner().invoke(command, ["--help"]).output
    for word in ("kept", "keep every", "taken back", "repaid", "a person", "luck"):
        assert word not in text.lower()


def test_the_whole_report_is_a_flag_away():
    """`truthgpt optimize --help` says how to see more than ten lines."""
    assert "--full" in CliRunner().invoke(optimize, ["--help"]).output
