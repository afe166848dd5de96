"""Gradients that are not finite, and data that nothing can be learned from."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from truthgpt_core.config import ConfigManager
from truthgpt_core.event_system import EventType
from truthgpt_core.hookspecs import hookimpl
from truthgpt_services.data import DataError
from truthgpt_services.services.training_job import TrainingJob
from truthgpt_services.training.checkpoint_files import read_checkpoint
from truthgpt_services.training.errors import TrainingError


class Exploding:
    """A plugin that makes the gradient of one batch infinite, and leaves its loss alone."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0

    @hookimpl(wrapper=True)
    def make_training_step(self):
        step = yield

        def exploding(batch):
            self.count += 1
            loss = step(batch)
            if self.count == self.at:
                loss.register_hook(lambda gradient: gradient * math.inf)
            return loss

        return exploding


def service(runs, directory, policy, model):
    """Two batches to a step; the second of the third step explodes."""
    return runs.configured(
        directory,
        plugins=runs.new_plugins(Exploding(6)),
        model=model,
        gradient_accumulation_steps=2,
        non_finite=policy,
        save_steps=2,
        max_steps=3,
    )


WHERE = "norm of the gradients is (inf|nan) at step 3, batches 4 to 5 of epoch 0"


@pytest.mark.fault("a loss or gradient that is not finite")
def test_an_infinite_gradient_stops_before_the_optimizer(runs, tmp_path) -> None:
    """The loss is a number; the error names step and batches, and no weight is spoiled."""
    model = runs.toy_model()
    with pytest.raises(TrainingError, match=WHERE):
        service(runs, tmp_path, "stop", model).run()
    kept = runs.CheckpointStore(tmp_path / "checkpoints").path_of(2)
    for name, tensor in read_checkpoint(kept).model.items():
        assert torch.equal(tensor, model.state_dict()[name])


@pytest.mark.fault("a loss or gradient that is not finite")
@pytest.mark.parametrize("policy", ["skip", "roll_back"])
def test_an_infinite_gradient_is_left_out(runs, tmp_path, events, policy) -> None:
    """With either policy the weights are those of the step before, and it is told where."""
    model = runs.toy_model()
    service(runs, tmp_path, policy, model).run()
    notes = [event.data for event in events if event.type is EventType.TRAINING_NOTED]
    (note,) = [each["note"] for each in notes if each["about"] == policy]
    assert "step 3, batches 4 to 5 of epoch 0" in note
    kept = runs.CheckpointStore(tmp_path / "checkpoints").path_of(2)
    for name, tensor in read_checkpoint(kept).model.items():
        assert torch.equal(tensor, model.state_dict()[name])


GOOD = json.dumps({"text": "a text to learn from, of several words"}) + "\n"


@pytest.mark.parametrize(
    ("files", "section", "said"),
    [
        (
            {"a.jsonl": '{"text": ""}\n' * 3},
            {},
            r"Nothing can be learned from .*a\.jsonl.*3 texts are blank",
        ),
        ({"a.jsonl": GOOD + "{no json\n"}, {}, r"a\.jsonl:2 is no JSON"),
        (
            {"a.csv": "body,label\nwords,1\n"},
            {"source": "csv", "options": {"column": "bdy"}},
            'Did you mean "body"',
        ),
        (
            {"a.jsonl": GOOD * 3, "kept.jsonl": '{"text": ""}\n'},
            {"validation_dataset": "kept.jsonl"},
            r"validate with: Nothing can be learned from .*kept\.jsonl",
        ),
    ],
    ids=["empty", "a broken line", "a wrong column", "nothing to validate with"],
)
def test_what_cannot_be_trained_on_is_said_before_training(
    bare_plugins, tiny, tmp_path, files, section, said
) -> None:
    """A configuration whose texts are of no use ends with where that is, and nothing is written."""
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    data = {"source": "jsonl", "dataset": next(iter(files)), "validation_fraction": 0, **section}
    for key in ("dataset", "validation_dataset"):
        if key in data:
            data[key] = str(tmp_path / data[key])
    file = tmp_path / "train.yaml"
    output = tmp_path / "out"
    file.write_text(
        json.dumps(
            {
                "model": {"name_or_path": str(tiny)},
                "data": {**data, "max_seq_len": 64, "tokenizing_processes": 1},
                "output_dir": str(output),
            }
        )
    )
    with pytest.raises(DataError, match=said):
        TrainingJob(bare_plugins).assemble(ConfigManager.load_config(Path(file)), device="cpu")
    assert not output.exists()
