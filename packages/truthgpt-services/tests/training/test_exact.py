"""Whatever is trained, with whatever, goes on after a stop as if there had been none."""

from __future__ import annotations

import pytest
import torch

from truthgpt_services.training.lr_schedulers import SCHEDULERS
from truthgpt_services.training.optimizers import OPTIMIZERS, parameter_groups
from truthgpt_services.training.rng import seed_all

pytestmark = pytest.mark.slow

# Two epochs of eight batches, three to a step: the stop is in epoch 2.
STEPS, STOP = 6, 4
USUAL = {"num_warmup_steps": 2, "num_training_steps": STEPS + 1}


class Trial:
    """Trains, whole and in two parts; says in what they differ."""

    def __init__(self, runs, plugins, directory) -> None:
        self.runs, self.plugins, self.directory = runs, plugins, directory

    def part(
        self, out, steps, *, resume=False, model=None, optimizer="adamw", options=None, **more
    ):
        """Train to a step; return the service and a digest of each part of its state."""
        schedule = more.pop("schedule", ("cosine", USUAL))
        seed_all(0)
        model = (model or self.runs.toy_model)()
        made = self.plugins.factories["optimizer_factory"].create(
            optimizer, parameter_groups(model, 0.1), lr=1e-2, **(options or {})
        )
        scheduler = self.plugins.factories["scheduler_factory"].create(
            schedule[0], made, **schedule[1]
        )
        scaler = more.pop("scaler", lambda: None)()
        service = self.runs.TrainingService(self.runs.new_plugins())
        settings = {"precision": "float32", "epochs": 9, "max_steps": steps}
        service.configure(
            config={**settings, "gradient_accumulation_steps": 3, "save_steps": 100, **more},
            model=model,
            train_loader=self.runs.ToyLoader(),
            optimizer=made,
            scheduler=scheduler,
            scaler=scaler,
            device="cpu",
            output_dir=self.directory / out,
        )
        if resume:
            service.resume()
        service.run()
        return service, self.runs.fingerprint(service)

    def differs(self, **given) -> set[str]:
        """Return in what a run let alone differs from one that was stopped and resumed."""
        _, whole = self.part("whole", STEPS, **given)
        _, half = self.part("parts", STOP, **given)
        _, parts = self.part("parts", STEPS, resume=True, **given)
        assert whole["weights"] != half["weights"], "nothing was trained after the stop"
        return {name for name in whole if whole[name] != parts[name]}


@pytest.fixture
def trial(runs, bare_plugins, tmp_path) -> Trial:
    """See `Trial`."""
    return Trial(runs, bare_plugins, tmp_path)


@pytest.mark.fault("a stop in epoch 2")
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_every_optimizer_resumes_exactly(trial, runs, optimizer, dtype) -> None:
    """What any optimizer remembers comes back in every bit, whatever the type of the weights."""
    differs = trial.differs(optimizer=optimizer, model=lambda: runs.toy_model().to(dtype))
    assert differs == set()


SCHEDULES = {
    "constant": {},
    "constant_with_warmup": {"num_warmup_steps": 5},
    "inverse_sqrt": {"num_warmup_steps": 2},
    "warmup_stable_decay": {**USUAL, "num_decay_steps": 3},
    "cosine_with_min_lr": {**USUAL, "min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {**USUAL, "min_lr_rate": 0.1},
}
"""What some take besides; those not named take what is usual."""


@pytest.mark.fault("a stop in epoch 2")
@pytest.mark.parametrize("schedule", sorted(SCHEDULERS))
def test_every_schedule_resumes_exactly(trial, schedule) -> None:
    """Any schedule goes on from the rate where it was."""
    assert trial.differs(schedule=(schedule, SCHEDULES.get(schedule, USUAL))) == set()


@pytest.mark.fault("a stop in epoch 2")
def test_a_scale_that_was_halved_resumes_exactly(trial) -> None:
    """In float16 the scale of the loss, and what it counts, are those of the run let alone."""
    first = 2.0**20

    def scaler():
        return torch.amp.GradScaler("cpu", init_scale=first, growth_interval=2)

    made = scaler()
    trial.part("scale", STOP, precision="float16", scaler=lambda: made)
    assert made.get_scale() < first
    assert trial.differs(precision="float16", scaler=scaler) == set()


@pytest.mark.fault("a stop in epoch 2")
def test_a_part_that_is_frozen_resumes_exactly(trial, runs) -> None:
    """Weights that are not trained are not saved either, and stay as they are."""

    def model():
        made = runs.toy_model(dropout=0.3)
        made.model.layers[0].requires_grad_(False)
        return made

    assert trial.differs(model=model) == set()


@pytest.mark.fault("a stop in epoch 2")
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "gradient-checkpointing"])
@pytest.mark.parametrize("lora", [False, True], ids=["", "lora"])
def test_lora_and_activation_checkpointing_resume_exactly(trial, runs, lora, checkpointing) -> None:
    """Dropout in both, drawn once more when activations are computed again, changes no bit."""

    def model():
        made = runs.toy_model(dropout=0.3)
        if checkpointing:
            made.gradient_checkpointing_enable()
            made.enable_input_require_grads()
        if not lora:
            return made
        peft = pytest.importorskip("peft")
        return peft.get_peft_model(
            made, peft.LoraConfig(r=2, lora_dropout=0.3, target_modules="all-linear")
        )

    assert trial.differs(model=model, precision="bfloat16") == set()
