"""TrainingService, as programs use it."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from truthgpt_core.event_system import EventType, TrainingStep, get_event_emitter
from truthgpt_core.hookspecs import hookimpl
from truthgpt_core.service_registry import ServiceContainer
from truthgpt_services import TrainingService
from truthgpt_services.training.checkpoint_files import read_checkpoint
from truthgpt_services.training.errors import CheckpointError, TrainingError


def told(events, event_type):
    return [event.data for event in events if event.type is event_type]


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


class Spoiling:
    """A plugin that makes the loss of some batches something else."""

    def __init__(self, value: float, at: set[int]) -> None:
        self.value, self.at, self.count = value, at, 0

    @hookimpl(wrapper=True)
    def make_training_step(self):
        step = yield

        def spoiled(batch):
            self.count += 1
            return step(batch) * (self.value if self.count in self.at else 1.0)

        return spoiled


# The examples of the architecture


def test_the_loop_of_the_seed(runs, tmp_path, events) -> None:
    """Configure, then train, evaluate and save each epoch, as the architecture's example does."""
    model, train_loader, val_loader = runs.toy_model(), runs.ToyLoader(), runs.ToyLoader(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    scaler = torch.amp.GradScaler("cpu")
    device = torch.device("cpu")
    container = ServiceContainer()
    container.register("training_service", TrainingService, singleton=True)
    service = container.get("training_service")
    service.configure(
        config={"epochs": 2},
        model=model,
        train_loader=train_loader,
        val_loader=val_loader,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=scaler,
        device=device,
        output_dir=tmp_path,
    )
    service.emit(EventType.TRAINING_STARTED, {})
    assert told(events, EventType.TRAINING_STARTED) == [{}]
    losses = []
    for epoch in range(2):
        service.train_epoch(model, train_loader, optimizer, scheduler, scaler, epoch)
        losses.append(service.evaluate(model, val_loader, device)["loss"])
        path = tmp_path / "mine"
        service.save_checkpoint(model, optimizer, scheduler, scaler, epoch, path)
    service.finish()

    assert len(told(events, EventType.TRAINING_STARTED)) == 1
    assert [data["epoch"] for data in told(events, EventType.TRAINING_EPOCH_FINISHED)] == [0, 1]
    assert [data["step"] for data in told(events, EventType.TRAINING_STEP)] == list(range(1, 17))
    assert len(told(events, EventType.CHECKPOINT_SAVED)) == 2
    assert len(told(events, EventType.TRAINING_FINISHED)) == 1
    trained = weights(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    service.resume(path)
    assert same(trained, weights(model))


def test_the_service_is_registered(bare_plugins) -> None:
    """Programs get it by its name, and its run tells that it started once."""
    assert isinstance(bare_plugins.container.get("training_service"), TrainingService)


def test_own_epochs_are_the_run(runs, tmp_path) -> None:
    """`train_epoch` for each epoch gives the very weights that `run` gives."""
    whole = runs.toy_model()
    runs.configured(tmp_path / "a", model=whole, epochs=2).run()
    model = runs.toy_model()
    service = runs.configured(tmp_path / "b", model=model, epochs=2)
    state = service._configured().state
    for epoch in range(2):
        service.train_epoch(
            model, service._configured().loader, state.optimizer, state.scheduler, None, epoch
        )
    service.finish()
    assert same(weights(whole), weights(model))


def test_a_step_is_an_event(runs, tmp_path, events) -> None:
    """Loss, rate, norm, tokens and speed of a step are fields of its dataclass."""
    runs.configured(tmp_path, max_steps=1).run()
    (event,) = [event for event in events if event.type is EventType.TRAINING_STEP]
    step = event.payload
    assert isinstance(step, TrainingStep)
    assert (step.step, step.epoch, step.learning_rate, step.refused) == (1, 0, 1e-2, False)
    assert step.tokens == int(runs.toy_batch(0, 2)["attention_mask"].sum())
    assert math.isfinite(float(step.loss) + step.grad_norm + step.tokens_per_second)


# The loss


@pytest.mark.parametrize("accumulated", [2, 3])
def test_accumulation_is_one_large_batch(runs, tmp_path, accumulated) -> None:
    """Batches of unequal lengths that are accumulated train as one batch of all their rows does."""
    parts = [runs.toy_batch(number, 1) for number in range(accumulated)]
    width = max(each["input_ids"].shape[1] for each in parts)
    assert len({int(each["attention_mask"].sum()) for each in parts}) > 1

    def widened(name):
        fill = -100 if name == "labels" else 0
        pad = torch.nn.functional.pad
        rows = [pad(each[name], (0, width - each[name].shape[1]), value=fill) for each in parts]
        return torch.cat(rows)

    large = {name: widened(name) for name in parts[0]}
    trained = []
    for batches, size in ((parts, accumulated), ([large], 1)):
        model = runs.toy_model(dropout=0.0).double()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            service = runs.configured(
                tmp_path / str(size),
                model=model,
                loader=batches,
                optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
                epochs=1,
                gradient_accumulation_steps=size,
                max_grad_norm=math.inf,
            )
        service.run()
        trained.append(weights(model))
    for name, tensor in trained[0].items():
        torch.testing.assert_close(tensor, trained[1][name], rtol=1e-9, atol=1e-11)


def test_an_epoch_with_nothing_to_predict_is_an_error(runs, tmp_path) -> None:
    """Batches without a single label end the run, which says so."""
    batch = runs.toy_batch(0, 2)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    with pytest.warns(UserWarning, match="state_dict"):
        service = runs.configured(tmp_path, loader=[batch, batch])
    with pytest.raises(TrainingError, match="no token to predict in epoch 0"):
        service.run()


# Guards


@pytest.mark.fault("a loss or gradient that is not finite")
def test_a_loss_that_is_no_number_stops_before_the_optimizer(runs, tmp_path, events) -> None:
    """The error names step and batch, and the weights are those of the step before."""
    model = runs.toy_model()
    service = runs.configured(
        tmp_path, plugins=runs.new_plugins(Spoiling(math.nan, {3})), model=model
    )
    after_two = []

    def note(event) -> None:
        if event.data["step"] == 2:
            after_two.append(weights(model))

    with (
        get_event_emitter().on(EventType.TRAINING_STEP, note),
        pytest.raises(TrainingError, match="loss is nan at step 3, batch 2 of epoch 0"),
    ):
        service.run()
    assert same(after_two[0], weights(model))
    (failed,) = told(events, EventType.TRAINING_FAILED)
    assert "step 3" in failed["reason"]


@pytest.mark.fault("a loss or gradient that is not finite")
def test_a_loss_that_is_no_number_is_left_out(runs, tmp_path, events) -> None:
    """With the policy skip the run goes on, as if the batch had not been there."""
    model = runs.toy_model()
    runs.configured(
        tmp_path,
        plugins=runs.new_plugins(Spoiling(math.nan, {3})),
        model=model,
        non_finite="skip",
        max_steps=5,
    ).run()
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
    (note,) = told(events, EventType.TRAINING_NOTED)[:1]
    assert note["about"] == "skip"
    assert "step 3, batch 2 of epoch 0" in note["note"]


@pytest.mark.fault("a loss or gradient that is not finite")
def test_a_loss_that_is_no_number_goes_back_to_a_checkpoint(runs, tmp_path, events) -> None:
    """With the policy roll_back the weights are those of the newest checkpoint, and it goes on."""
    model = runs.toy_model()
    service = runs.configured(
        tmp_path,
        plugins=runs.new_plugins(Spoiling(math.nan, {4})),
        model=model,
        non_finite="roll_back",
        save_steps=2,
        max_steps=4,
    )
    service.run()
    (note,) = [each for each in told(events, EventType.TRAINING_NOTED) if "back" in each["about"]]
    assert "back to the weights of step 2" in note["note"]
    kept = runs.CheckpointStore(tmp_path / "checkpoints").path_of(2)
    assert same(read_checkpoint(kept).model, weights(model))


@pytest.mark.fault("a loss or gradient that is not finite")
def test_too_many_in_a_row_end_the_run(runs, tmp_path) -> None:
    """A run that can only skip does not go on for ever."""
    service = runs.configured(
        tmp_path,
        plugins=runs.new_plugins(Spoiling(math.nan, set(range(100)))),
        non_finite="skip",
        max_non_finite=3,
    )
    with pytest.raises(TrainingError, match="4 steps that were refused"):
        service.run()


def test_a_spike_is_reported(runs, tmp_path, events) -> None:
    """A loss far above the running median is told, with what is usual."""
    runs.configured(tmp_path, plugins=runs.new_plugins(Spoiling(9.0, {20})), epochs=3).run()
    notes = [each for each in told(events, EventType.TRAINING_NOTED) if each["about"] == "spike"]
    assert [note["step"] for note in notes] == [20]


def test_training_ends_when_validation_stands_still(runs, tmp_path, events) -> None:
    """After so many evaluations without a better loss the run ends, and says why."""
    model = runs.toy_model()
    service = runs.configured(
        tmp_path,
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        validation=runs.Validation(),
        eval_steps=1,
        early_stopping_patience=2,
    )
    assert service.run()["step"] == 3
    assert "has not fallen below" in told(events, EventType.TRAINING_NOTED)[-1]["note"]


# Plugins


class Steering:
    """A plugin that decides when to evaluate, to save and to stop."""

    @hookimpl
    def should_evaluate(self, progress):
        return progress.step == 2

    @hookimpl
    def should_save(self, progress):
        return progress.step == 3

    @hookimpl
    def should_stop_training(self, progress):
        return "four are enough" if progress.step == 4 else None


def test_plugins_steer(runs, tmp_path, events) -> None:
    """Plugins say when a run is evaluated, saved and ended; the end is saved in any case."""
    service = runs.configured(
        tmp_path, plugins=runs.new_plugins(Steering()), validation=runs.ToyLoader(2)
    )
    service.run()
    assert [each["step"] for each in told(events, EventType.EVALUATION_FINISHED)] == [2]
    assert [each["step"] for each in told(events, EventType.CHECKPOINT_SAVED)] == [3, 4]
    assert told(events, EventType.TRAINING_NOTED)[-1]["note"] == "Training ends: four are enough"


def test_a_listener_cannot_break_a_run(runs, tmp_path) -> None:
    """A tracker that raises at each step is logged, and the run goes on to its end."""

    def broken(event) -> None:
        raise RuntimeError("the tracker is down")

    with get_event_emitter().on(EventType.TRAINING_STEP, broken):
        assert runs.configured(tmp_path, max_steps=2).run()["step"] == 2


# Mistakes


def test_a_service_that_is_not_configured_says_so(runs) -> None:
    """Training before `configure` is one clear error."""
    with pytest.raises(TrainingError, match="not configured"):
        TrainingService(runs.new_plugins()).run()


def test_a_wrong_configuration_is_refused_as_a_whole(runs, tmp_path) -> None:
    """All that is wrong is said at once, with what was probably meant."""
    with pytest.raises(TrainingError, match="train_batch_size is 0") as caught:
        runs.configured(tmp_path, epoch=1, train_batch_size=0)
    assert 'no key "epoch". Did you mean "epochs"?' in str(caught.value)


def test_a_checkpoint_of_another_model_is_refused(runs, tmp_path) -> None:
    """Resuming with another shape of model says which weight does not fit."""
    runs.configured(tmp_path, max_steps=1).run()
    other = runs.configured(tmp_path, model=runs.toy_model(vocabulary=80))
    with pytest.raises(CheckpointError, match="embed_tokens"):
        other.resume()


def test_a_batch_without_labels_is_refused(runs, tmp_path) -> None:
    """A batch that lacks what it must have is named."""
    with pytest.warns(UserWarning, match="begins its epoch anew"):
        service = runs.configured(tmp_path, loader=[{"input_ids": torch.ones(1, 3)}])
    with pytest.raises(TrainingError, match="Batch 0 of the loader has no labels"):
        service.run()
