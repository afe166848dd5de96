"""`truthgpt train`, as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def config(tmp_path: Path, tiny: Path) -> Path:
    """A configuration that trains the tiny model for a few steps."""
    file = tmp_path / "train.yaml"
    file.write_text(f"""\
model: {{name_or_path: "{tiny}"}}
data: {{source: python_docs, dataset: topics, max_seq_len: 64, tokenizing_processes: 1}}
training:
  max_steps: 6
  train_batch_size: 2
  gradient_accumulation_steps: 2
  learning_rate: 1e-3
  eval_steps: 3
  eval_batch_size: 32
  save_steps: 2
  precision: float32
  sample_prompts: ["The for statement"]
  sample_tokens: 4
output_dir: "{tmp_path / "out"}"
""")
    return file


def rows(out: Path, kind: str) -> list[dict]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def test_a_model_is_trained_and_can_be_used(truthgpt, config, tmp_path) -> None:
    """The result generates, metrics and plot are there, and going on later adds to them."""
    out = tmp_path / "out"
    done = truthgpt("train", config, "--set", "training.max_steps=3")
    assert done.returncode == 0, done.stderr
    assert "validation loss" in done.stdout
    assert "| The for statement" in done.stdout
    assert (out / "loss.svg").read_text().startswith("<svg")
    assert [row["step"] for row in rows(out, "step")] == [1, 2, 3]

    refused = truthgpt("train", config)
    assert refused.returncode == 1
    assert "--resume" in refused.stderr

    resumed = truthgpt("train", config, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert [row["step"] for row in rows(out, "step")] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows(out, "evaluation")] == [3, 6]

    spoken = truthgpt("generate", out / "model", "The", "--max-new-tokens", "3")
    assert spoken.returncode == 0, spoken.stderr


def test_new_models_and_lora(truthgpt, config, tmp_path) -> None:
    """A small Llama is trained from nothing, then a model with matrices of peft."""
    new = [
        *("--set", "architecture={hidden_size: 32, layers: 1, heads: 2, context: 128}"),
        *("--set", "training.max_steps=2", "--set", "training.eval_steps=null"),
    ]
    done = truthgpt("train", config, *new)
    assert done.returncode == 0, done.stderr
    described = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert (described["hidden_size"], described["num_hidden_layers"]) == (32, 1)

    pytest.importorskip("peft")
    out = tmp_path / "adapted"
    adapted = truthgpt(
        *("train", config, "--set", "lora={rank: 2}", "--set", f"output_dir={out}"),
        *("--set", "training.max_steps=2", "--set", "model.gradient_checkpointing=true"),
    )
    assert adapted.returncode == 0, adapted.stderr
    assert (out / "model" / "model.safetensors").exists()
