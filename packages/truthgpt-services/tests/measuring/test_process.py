"""Worker processes: they answer, they fail alone, and they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from truthgpt_core.optimization import OptimizationError
from truthgpt_services.errors import ModelError, WorkerError
from truthgpt_services.measuring.process import WorkerProcess

OPEN = {"dtype": "auto", "device": "cpu"}
BUILD = OPEN | {"source": "here", "seed": 7}


@pytest.fixture
def worker(example_installed, tmp_path):
    with WorkerProcess("halve + idle", tmp_path) as process:
        yield process


def build(worker, tiny, output, name, **options):
    step = {"name": name, "options": options, "distribution": ""}
    return worker.call("build", directory=str(tiny), steps=[step], output=str(output), **BUILD)


def test_a_worker_answers_and_its_errors_are_raised_here(worker, tiny, tmp_path):
    """One start for all that follows from it: an error does not end the worker.

    Ours keep their class, message and hint; a plugin's own class becomes the nearest of ours;
    what nobody expected becomes a WorkerError with the worker's name.
    """
    with pytest.raises(ModelError, match="There is no model at") as caught:
        worker.call("open", directory="/no/where", **OPEN)
    assert type(caught.value) is ModelError
    with pytest.raises(OptimizationError, match=r"no optimization named.*Did you mean") as caught:
        build(worker, tiny, tmp_path, "halv")
    assert caught.value.hint.startswith('Did you mean "halve"?')
    with pytest.raises(OptimizationError) as caught:
        build(worker, tiny, tmp_path, "picky")
    assert type(caught.value) is OptimizationError
    assert str(caught.value) == "This model has no knobs. Take one with knobs."
    with pytest.raises(WorkerError, match=r'"halve \+ idle" failed to open: TypeError') as caught:
        worker.call("open", nonsense=True)
    assert caught.value.worker == "halve + idle"
    (tmp_path / "saved").mkdir()
    built = build(worker, tiny, tmp_path / "saved", "half")
    (step,) = built["steps"]
    assert (step["covered"], step["total"]) == (14, 15)
    assert step["notes"] == ["Halves are whole enough, with seed 7."]
    assert step["skipped"] == [["lm_head", "it makes the logits"]]
    opened = worker.call("open", directory=str(tmp_path / "saved"), **OPEN)
    assert opened["dtype"] == "float32"
    assert worker.call("tokenize", text="The end", limit=2) == worker.call(
        "tokenize", text="The ending", limit=2
    )
    # The last of all: it takes the worker with it.
    with pytest.raises(WorkerError) as caught:
        build(worker, tiny, tmp_path, "die")
    assert 'The worker for "halve + idle" ended with SIGKILL when asked to build' in str(
        caught.value
    )
    assert "too little memory" in caught.value.hint
    with pytest.raises(WorkerError, match="ended with SIGKILL"):
        worker.call("open", directory=str(tiny), **OPEN)


def test_a_worker_that_cannot_start_says_why(tmp_path, monkeypatch):
    """The last line that it printed stands in the error."""
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with WorkerProcess("baseline", tmp_path) as worker, pytest.raises(WorkerError) as caught:
        worker.call("open", directory="x", **OPEN)
    assert str(caught.value) == (
        'The worker for "baseline" ended with exit code 1 when asked to open: '
        "ImportError: libtorch.so is missing"
    )


def test_a_worker_ignores_ctrl_c_and_ends_with_its_input():
    """The process that started it decides; and if that is gone, its pipe closes."""
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", "truthgpt_services.measuring.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    # An answer says that it is up: until then it has not set the signal aside.
    worker.stdin.write('{"do": "open", "with": {"directory": "/no", "dtype": "x", "device": ""}}\n')
    worker.stdin.flush()
    assert worker.stdout.readline().startswith('{"error": [["ModelError"')
    os.kill(worker.pid, signal.SIGINT)
    rest, _ = worker.communicate(timeout=60)
    assert (worker.returncode, rest) == (0, "")
