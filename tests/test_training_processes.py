"""Training in several processes is the training of one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from truthgpt_services.testing import write_tiny_model
from truthgpt_services.training.checkpoints import CheckpointStore

# One worker makes what they share.
pytestmark = pytest.mark.xdist_group("training_processes")

SCRIPT = Path(__file__).parent / "process_runs.py"
CONFIG = """
model: {name_or_path: model}
data: {source: python_docs, dataset: topics, max_seq_len: 48, validation_fraction: 0.02}
training:
  max_steps: 6
  # Neither divides by two: one process gets more rows, and in the end one has none left.
  train_batch_size: 5
  eval_batch_size: 3
  gradient_accumulation_steps: 2
  learning_rate: 1e-3
  precision: float32
  compile: false
  eval_steps: 3
  save_steps: 2
  keep_last: 9
"""
CLOSE = 1e-4
"""Between weights of runs that add up in another order; a step of the optimizer is 1e-3."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny model and a configuration."""
    directory = tmp_path_factory.mktemp("processes")
    write_tiny_model(directory / "model")
    (directory / "train.yaml").write_text(CONFIG)
    return directory


@pytest.fixture(scope="module")
def ended(home: Path) -> dict[str, dict[str, Any]]:
    """What became of runs of one process and of two, some of which were cut short and resumed."""
    ddp, fsdp2 = "none", "fsdp2"
    jobs = {
        "one": job("one", 1),
        "ddp": job("ddp", 2, ddp),
        "fsdp2": job("fsdp2", 2, fsdp2),
        # A batch is two to a step: the third is in the second step.
        "ddp stopped": job("2to1", 2, ddp, signal=signal.SIGTERM, rank=1, at=5),
        "resumed by one": job("2to1", 1, resume=True),
        "fsdp2 stopped": job("f2to1", 2, fsdp2, signal=signal.SIGTERM, rank=0, at=5),
        "fsdp2 resumed by one": job("f2to1", 1, resume=True),
        "one stopped": job("1to2", 1, signal=signal.SIGTERM, rank=0, at=5),
        "resumed by fsdp2": job("1to2", 2, fsdp2, resume=True),
        "killed": job("killed", 2, ddp, signal=signal.SIGKILL, rank=1, at=10),
        "resumed by ddp": job("killed", 2, ddp, resume=True),
        "not a sharding": job("wrong", 2, "fsdp3"),
        "local": job(
            "local",
            2,
            ddp,
            more=["--set", "training.backend=local", "--set", "training.backend_options={}"],
        ),
    }
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        input=json.dumps(list(jobs.values())),
        capture_output=True,
        text=True,
        timeout=500,
        cwd=home,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(jobs, json.loads(done.stdout), strict=True))


def job(
    out: str,
    processes: int,
    sharding: str = "none",
    *,
    resume: bool = False,
    more: list[str] | None = None,
    **trouble: int,
) -> dict[str, Any]:
    return {
        "processes": processes,
        "arguments": [
            "train.yaml",
            "--set",
            f"output_dir={out}",
            "--set",
            f"training.backend_options.sharding={sharding}",
            *(more or []),
            *(["--resume"] if resume else []),
        ],
        **trouble,
    }


def weights(home: Path, out: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(home / out / "model" / "model.safetensors")


def metrics(home: Path, out: str) -> list[dict[str, Any]]:
    lines = (home / out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses(home: Path, out: str) -> list[float]:
    return [row["loss"] for row in metrics(home, out) if row.get("loss") is not None]


@pytest.mark.parametrize("out", ["ddp", "fsdp2"])
def test_two_processes_take_the_steps_of_one(
    ended: dict[str, dict[str, Any]], home: Path, out: str
) -> None:
    """Losses, validation losses and weights are those of one process, within float error."""
    assert ended[out]["codes"] == [0, 0], ended[out]
    expected = losses(home, "one")
    assert len(expected) > 6
    assert losses(home, out) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(weights(home, out), weights(home, "one"), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_the_main_process_alone_speaks(ended: dict[str, dict[str, Any]], name: str) -> None:
    """What is said of a run is said once."""
    said = ended[name]["said"]
    assert "The model is in" in said[0]
    assert said[1].strip() == ""


@pytest.mark.parametrize(
    ("out", "stopped", "resumed"),
    [
        ("2to1", "ddp stopped", "resumed by one"),
        ("f2to1", "fsdp2 stopped", "fsdp2 resumed by one"),
        ("1to2", "one stopped", "resumed by fsdp2"),
    ],
)
def test_another_number_of_processes_goes_on(
    ended: dict[str, dict[str, Any]], home: Path, out: str, stopped: str, resumed: str
) -> None:
    """What one number of processes saved, another resumes, and ends where one would have."""
    codes = ended[stopped]["codes"]
    assert codes == [128 + signal.SIGTERM] * len(codes), ended[stopped]
    assert not any(ended[resumed]["codes"]), ended[resumed]
    assert "Going on from" in ended[resumed]["said"][0]
    torch.testing.assert_close(weights(home, out), weights(home, "one"), atol=CLOSE, rtol=0)


def test_a_process_that_dies_leaves_a_whole_checkpoint(
    ended: dict[str, dict[str, Any]], home: Path
) -> None:
    """The other one says what happened, and all go on from the newest checkpoint."""
    main, killed = ended["killed"]["codes"]
    assert killed == -signal.SIGKILL
    assert main == 1
    said = ended["killed"]["said"][0]
    assert "cannot reach the others any more" in said
    assert "Traceback" not in said
    assert ended["resumed by ddp"]["codes"] == [0, 0], ended["resumed by ddp"]
    assert "Going on from killed/checkpoints/step-00000004" in ended["resumed by ddp"]["said"][0]
    assert not CheckpointStore(home / "killed" / "checkpoints").newest().skipped
    torch.testing.assert_close(weights(home, "killed"), weights(home, "one"), atol=CLOSE, rtol=0)


def test_a_sharding_that_is_not_there_is_named(ended: dict[str, dict[str, Any]]) -> None:
    """A mistyped option costs one error, with what was meant."""
    said = ended["not a sharding"]["said"][0]
    assert "There is no sharding 'fsdp3'" in said
    assert 'Did you mean "fsdp2"?' in said


def test_processes_that_would_train_the_same_are_refused(
    ended: dict[str, dict[str, Any]],
) -> None:
    """The backend of one process does not run in each of two."""
    assert ended["local"]["codes"] == [1, 1]
    assert "This is one of 2 processes" in ended["local"]["said"][0]


def test_torchrun_starts_it(home: Path) -> None:
    """The README's command trains in two processes."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--no-python", str(Path(sys.executable).with_name("truthgpt"))),
            *("train", "train.yaml", "--set", "output_dir=launched"),
            *("--set", "training.max_steps=2"),
        ],
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TRUTHGPT_PLUGINS": "services,accelerate"},
    )
    assert done.returncode == 0, done.stderr
    assert "The model is in launched/model" in done.stdout
