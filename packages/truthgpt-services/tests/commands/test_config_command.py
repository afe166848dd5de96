"""`truthgpt config` with the sections of the services."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

FILE = "model: {name_or_path: m}\ndata: {source: jsonl, dataset: d}\ntraining: {epochs: 2}\n"


@pytest.mark.new_process
def test_show_has_every_key_of_training(truthgpt, tmp_path: Path) -> None:
    """What the file does not say is shown with its default."""
    file = tmp_path / "train.yaml"
    file.write_text(FILE)
    done = truthgpt("config", "show", "--json", file, "-s", "training.warmup_ratio=10%")
    assert (done.returncode, done.stderr) == (0, "")
    rows = {row["path"]: (row["value"], row["origin"]) for row in json.loads(done.stdout)}
    assert rows["training.epochs"][0] == 2
    assert rows["training.epochs"][1].endswith("train.yaml:3:20")
    assert rows["training.warmup_ratio"] == (0.1, "override 1")
    assert rows["training.weight_decay"] == (0.0, "default")


def test_schema_lists_what_is_installed(truthgpt) -> None:
    """Sections, and the names of components, are those of the active plugins."""
    done = truthgpt("config", "schema")
    assert (done.returncode, done.stderr) == (0, "")
    schema = json.loads(done.stdout)
    assert {"model", "data", "training", "architecture", "lora"} <= set(schema["properties"])
    assert "jsonl" in schema["$defs"]["DataSection"]["properties"]["source"]["enum"]


def test_without_the_plugin_each_section_says_what_has_it(truthgpt, tmp_path: Path) -> None:
    """A file for training is an error in each place, with the name of the distribution."""
    file = tmp_path / "train.yaml"
    file.write_text(FILE)
    environment = os.environ | {"TRUTHGPT_PLUGINS_BLOCK": "services"}
    done = truthgpt("config", "show", "train.yaml", cwd=tmp_path, env=environment)
    hint = "It comes with truthgpt-services, which is not active: see truthgpt plugins."
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.removeprefix("truthgpt: ").splitlines() == [
        f"train.yaml:{line}:1: {name}: unknown key. {hint}"
        for line, name in enumerate(("model", "data", "training"), 1)
    ]
