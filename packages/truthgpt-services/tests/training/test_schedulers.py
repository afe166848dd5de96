"""Learning-rate schedules by name: the rates that they give, step by step."""

from __future__ import annotations

import pytest
import torch

from truthgpt_core.dynamic_factory import ComponentArgumentsError, UnknownComponentError

RATE = 0.5
WARM = {"num_warmup_steps": 10}
WARM_100 = WARM | {"num_training_steps": 100}

# What each is created with, and the rate before the step of that number, over the optimizer's.
CURVES = {
    "constant": ({}, {0: 1, 50: 1, 100: 1}),
    "constant_with_warmup": (WARM, {0: 0, 5: 0.5, 10: 1, 100: 1}),
    "linear": (WARM_100, {0: 0, 5: 0.5, 10: 1, 55: 0.5, 100: 0}),
    "cosine": (WARM_100, {0: 0, 5: 0.5, 10: 1, 40: 0.75, 55: 0.5, 70: 0.25, 100: 0}),
    "cosine_with_restarts": (
        WARM_100 | {"num_cycles": 3},
        {0: 0, 10: 1, 25: 0.5, 40: 1, 55: 0.5, 70: 1, 85: 0.5, 100: 0},
    ),
    "cosine_with_min_lr": (WARM_100 | {"min_lr": 0.1}, {0: 0, 10: 1, 55: 0.6, 100: 0.2}),
    # Transformers' own is one step ahead of the others.
    "cosine_warmup_with_min_lr": (
        WARM_100 | {"min_lr_rate": 0.2, "warmup_lr_rate": 0.1},
        {0: 0.1, 9: 1, 54: 0.6, 99: 0.2},
    ),
    "polynomial": (
        WARM_100 | {"lr_end": 0.1, "power": 2.0},
        {0: 0, 5: 0.5, 10: 1, 55: 0.4, 100: 0.2},
    ),
    "inverse_sqrt": (WARM, {0: 0, 5: 0.5, 10: 1, 40: 0.5, 90: 1 / 3}),
    "warmup_stable_decay": (
        WARM_100 | {"num_decay_steps": 20, "decay_type": "linear"},
        {0: 0, 5: 0.5, 10: 1, 50: 1, 80: 1, 90: 0.5, 100: 0},
    ),
}


@pytest.fixture
def factory(bare_plugins):
    return bare_plugins.factories["scheduler_factory"]


def an_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)


def rates(schedule, steps: int) -> list[float]:
    """Train for so many steps; return the rate of each and the one that comes next."""
    found = [schedule.get_last_lr()[0]]
    for _ in range(steps):
        schedule.optimizer.step()
        schedule.step()
        found.append(schedule.get_last_lr()[0])
    return found


def test_the_names_are_those_of_transformers(factory):
    """A configuration written for transformers names the same schedules."""
    from transformers import SchedulerType

    # Stepped with a metric, which whoever steps the others does not have.
    with_a_metric = {"reduce_lr_on_plateau", "greedy"}
    assert set(factory.names()) == set(CURVES)
    assert set(factory.names()) <= {kind.value for kind in SchedulerType} - with_a_metric


@pytest.mark.parametrize("name", CURVES)
def test_each_schedule_gives_the_rates_it_is_known_for(factory, name):
    """Warmup, decay and where they end, in steps of the optimizer, from a configuration."""
    parameters, expected = CURVES[name]
    made = factory.create_from_config({"name": name, "parameters": parameters}, an_optimizer())
    found = rates(made, 100)
    assert {step: found[step] / RATE for step in expected} == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", CURVES)
def test_a_saved_schedule_goes_on_where_it_was(factory, name):
    """Training that is resumed has the rates it would have had."""
    parameters, _ = CURVES[name]
    whole = rates(factory.create(name, an_optimizer(), **parameters), 60)
    first = factory.create(name, an_optimizer(), **parameters)
    rates(first, 30)
    resumed = factory.create(name, optimizer := an_optimizer(), **parameters)
    optimizer.load_state_dict(first.optimizer.state_dict())
    resumed.load_state_dict(first.state_dict())
    assert rates(resumed, 30) == pytest.approx(whole[30:])


def test_every_group_of_parameters_follows_the_schedule(factory):
    """Groups keep the ratio between their rates."""
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (RATE, RATE / 10)
    ]
    schedule = factory.create("linear", torch.optim.SGD(groups), **WARM_100)
    rates(schedule, 55)
    assert schedule.get_last_lr() == pytest.approx([RATE / 2, RATE / 20])


def test_wrong_arguments_are_reported_together(factory):
    """Who mistypes one, leaves another out and gives a third a word is told all of it."""
    with pytest.raises(ComponentArgumentsError) as caught:
        factory.create("cosine", an_optimizer(), num_warm_up_steps=10, num_cycles="half")
    assert len(caught.value.problems) == 4
    assert 'Did you mean "num_warmup_steps"?' in str(caught.value)
    assert 'missing argument "num_training_steps"' in caught.value.problems
    assert "\"num_cycles\" must be float, not str 'half'" in caught.value.problems


def test_a_mistyped_name_is_suggested(factory):
    """The error names the schedule that was meant."""
    with pytest.raises(UnknownComponentError, match=r'"cosin"\. Did you mean "cosine"\?'):
        factory.create("cosin", an_optimizer(), **WARM_100)
