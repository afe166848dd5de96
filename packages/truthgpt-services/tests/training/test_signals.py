"""`truthgpt train`, told to end at the worst moments, and what `--resume` makes of it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from truthgpt_services.training.checkpoint_files import Contents, read_checkpoint
from truthgpt_services.training.checkpoints import CheckpointStore

pytestmark = pytest.mark.slow

WORDS = ["while", "for", "yield", "return", "import", "class", "lambda", "global"]


@pytest.fixture
def config(tmp_path: Path, tiny: Path) -> Path:
    """Two epochs of about nine batches, packed, shuffled, made by two processes, two to a step."""
    texts = [" ".join(WORDS[at % 8 :] * (1 + at % 5)) for at in range(20)]
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    file = tmp_path / "train.yaml"
    file.write_text(f"""\
model: {{name_or_path: "{tiny}"}}
data:
  source: jsonl
  dataset: "{data}"
  validation_dataset: "{data}"
  max_seq_len: 32
  num_workers: 2
  tokenizing_processes: 1
training:
  epochs: 2
  train_batch_size: 4
  gradient_accumulation_steps: 2
  learning_rate: 1e-3
  eval_batch_size: 16
  save_steps: 2
  keep_last: 100
  precision: bfloat16
""")
    return file


@pytest.fixture
def command(config: Path, tmp_path: Path):
    """Make a job: the command, with an output directory of a name."""
    count = 0

    def make(out: str, *arguments: object, trouble: Any = None, **more: Any) -> dict[str, Any]:
        nonlocal count
        count += 1
        given = [config, "--set", f"output_dir={tmp_path / out}", *arguments]
        job = {
            "kind": "command",
            "arguments": list(map(str, given)),
            "log": str(tmp_path / f"log-{count}"),
            **more,
        }
        return job if trouble is None else {**job, "trouble": trouble}

    return make


def last(directory: Path) -> Contents:
    """The newest checkpoint of a run; none of them is damaged."""
    found = CheckpointStore(directory / "checkpoints").newest()
    assert found.path is not None
    assert not found.skipped
    return read_checkpoint(found.path)


def differs(one: Contents, other: Contents) -> set[str]:
    """In what two checkpoints differ."""
    found = {name for name in one.state if one.state[name] != other.state[name]}
    for name in ("model", "training"):
        ours, theirs = getattr(one, name), getattr(other, name)
        assert ours.keys() == theirs.keys()
        found |= {each for each in ours if not torch.equal(ours[each], theirs[each])}
    return found


EVALUATION = {"event": "EVALUATION_STARTED"}
MOMENTS = {
    "SIGTERM to all processes amid accumulation": (
        "batch",
        {"at": 3, "number": "SIGTERM", "group": True},
    ),
    "SIGINT to all processes amid accumulation, in epoch 2": (
        "batch",
        {"at": 12, "number": "SIGINT", "group": True},
    ),
    "SIGTERM in an evaluation": ("event", {**EVALUATION, "nth": 1, "number": "SIGTERM"}),
    "SIGINT in the last evaluation": ("event", {**EVALUATION, "nth": 2, "number": "SIGINT"}),
    "SIGTERM while a checkpoint is written": (
        "flush",
        {"directory": "step-00000002", "number": "SIGTERM"},
    ),
}


@pytest.mark.fault("a signal", cases=len(MOMENTS))
def test_a_signal_at_any_moment_costs_nothing(jobs, command, tmp_path, some) -> None:
    """At each moment the command saves, leaves in one line, and resumed it is the same run."""
    moments = some(list(MOMENTS), 3)
    given = [command("whole")]
    for at, moment in enumerate(moments):
        trouble = MOMENTS[moment]
        given += [command(f"out-{at}", trouble=trouble), command(f"out-{at}", "--resume")]
    whole, *ended = jobs(*given)
    assert whole["code"] == 0, whole["said"]
    expected = last(tmp_path / "whole")
    for at, moment in enumerate(moments):
        stopped, resumed = ended[2 * at : 2 * at + 2]
        name = moment.split()[0]
        assert stopped["code"] == 128 + signal.Signals[name], (moment, stopped["said"])
        assert stopped["said"].count(f"{name} ended training, and all of it is saved in") == 1
        assert "Traceback" not in stopped["said"], moment
        assert stopped["left"] == 0, moment
        assert resumed["code"] == 0, (moment, resumed["said"])
        assert "Going on from" in resumed["said"], moment
        assert differs(expected, last(tmp_path / f"out-{at}")) == set(), moment


@pytest.mark.fault("a signal")
def test_a_second_ctrl_c_leaves_at_once(jobs, command, tmp_path) -> None:
    """It does not wait for the checkpoint of the first; what was saved before is whole."""
    trouble = (
        "flush",
        {"directory": "step-00000003", "number": "SIGINT", "before": (7, "SIGINT"), "seconds": 60},
    )
    whole, left, resumed = jobs(
        command("whole"), command("out", trouble=trouble), command("out", "--resume")
    )
    assert left["code"] == 130, left["said"]
    assert left["said"].count("left at once; what was saved before is whole") == 1
    assert "Traceback" not in left["said"]
    assert left["left"] == 0
    assert "step-00000002" in resumed["said"].partition("Going on from")[2], resumed["said"]
    assert differs(last(tmp_path / "whole"), last(tmp_path / "out")) == set()
    assert whole["code"] == resumed["code"] == 0


@pytest.mark.fault("a signal", cases=2)
def test_a_signal_while_data_is_prepared_leaves_nothing(jobs, command, cache) -> None:
    """The command leaves in one line; no process goes on, and nothing is in the cache."""
    given = [
        command(
            f"out-{processes}",
            *("--set", f"data.tokenizing_processes={processes}"),
            trouble=("says", {"words": "Tokenizing", "number": number, "group": True}),
            tokens={"IN_MEMORY": 100, "_CHUNK": 100},
        )
        for processes, number in ((1, "SIGINT"), (2, "SIGTERM"))
    ]
    for done, name in zip(jobs(*given), ("SIGINT", "SIGTERM"), strict=True):
        assert done["code"] == 128 + signal.Signals[name], done["said"]
        assert done["said"].count(f"truthgpt: {name} ended it before training began") == 1
        assert "Traceback" not in done["said"]
        assert done["left"] == 0
    assert list((cache / "tokens").iterdir()) == []


@pytest.mark.fault("a signal")
def test_a_signal_while_the_model_is_saved_leaves_no_half(jobs, command, tmp_path) -> None:
    """The command leaves in one line, without a model; resumed, it saves what it had trained."""
    trouble = ("save", {"number": "SIGTERM"})
    stopped, resumed = jobs(command("out", trouble=trouble), command("out", "--resume"))
    assert stopped["code"] == 128 + signal.SIGTERM, stopped["said"]
    assert stopped["said"].count("SIGTERM ended training, and all of it is saved in") == 1
    assert resumed["code"] == 0, resumed["said"]
    assert sorted(each.name for each in (tmp_path / "out").iterdir() if "model" in each.name) == [
        "model"
    ]


@pytest.mark.fault("a kill at any moment")
def test_a_worker_that_is_killed_is_one_line(jobs, command) -> None:
    """A process that prepares batches and is killed, as for want of memory, is said to be."""
    trouble = ("batch", {"at": 3, "number": "SIGKILL", "workers": True})
    (done,) = jobs(command("out", trouble=trouble))
    assert done["code"] == 1, done["said"]
    assert "Traceback" not in done["said"]
    (line,) = [each for each in done["said"].splitlines() if each.startswith("truthgpt: ")]
    assert "A process that prepares batches ended" in line
    assert "data.num_workers" in line
    assert done["left"] == 0


@pytest.mark.fault("a disk that is full or read-only")
def test_a_disk_that_fills_up_is_one_line(jobs, command, small_disk) -> None:
    """The command says which checkpoint could not be written, and those before it are whole."""
    disk = small_disk(5000)
    (done,) = jobs(command("out", "--set", f"output_dir={disk}"))
    assert done["code"] == 1, done["said"]
    assert "Traceback" not in done["said"]
    (line,) = [each for each in done["said"].splitlines() if each.startswith("truthgpt: ")]
    found = CheckpointStore(disk / "checkpoints").newest()
    assert found.path is not None
    assert not found.skipped
    step = int(found.path.name.removeprefix("step-"))
    assert "The disk is full" in line
    assert str(disk / "checkpoints" / f"step-{step + 2:08d}") in line
