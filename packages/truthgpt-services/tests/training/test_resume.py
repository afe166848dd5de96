"""A run that was stopped, by whatever, goes on as if it had not been."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

KILLS = 20


def different(one, other) -> set[str]:
    """The parts in which two fingerprints differ."""
    assert one.keys() == other.keys()
    return {name for name in one if one[name] != other[name]}


@pytest.mark.campaign(cases=2)
@pytest.mark.fault("a stop in epoch 2")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed-2-workers"])
def test_stopping_and_resuming_changes_no_bit(jobs, tmp_path, tiny, precision, packed) -> None:
    """2N steps are N steps, a stop in epoch 2 and N steps in a new process, in every bit.

    Gradients are accumulated, dropout draws random numbers, and weights, optimizer, schedule,
    random numbers and the position of the loader are compared.
    """
    settings = {"precision": precision, "save_steps": 2}
    common = {"packed": str(tiny)} if packed else {}

    def job(out: str, steps: int, **more):
        return {
            "out": str(tmp_path / out),
            "settings": {**settings, "max_steps": steps, "epochs": 9},
            **common,
            **more,
        }

    whole, half, resumed = jobs(job("whole", 8), job("parts", 4), job("parts", 8, resume=True))
    assert different(whole, resumed) == set()
    assert {"weights", "optimizer", "random"} <= different(whole, half)


@pytest.mark.fault("a signal")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_amid_accumulation_costs_nothing(jobs, tmp_path, name) -> None:
    """A signal between the batches of a step saves and leaves, and what resumes is the same run."""
    settings = {"epochs": 2}
    number = getattr(signal, name).value
    whole, stopped, resumed = jobs(
        {"out": str(tmp_path / "whole"), "settings": settings},
        {
            "out": str(tmp_path / "parts"),
            "settings": settings,
            "signal_at": 13,
            "signal": number,
        },
        {"out": str(tmp_path / "parts"), "settings": settings, "resume": True},
    )
    assert stopped["signal"] == name
    # 8 batches in an epoch, 3 to a step: batch 13 is the second one of the step after the fourth.
    assert Path(stopped["checkpoint"]).name == "step-00000004"
    assert different(whole, resumed) == set()


@pytest.mark.fault("a signal")
def test_a_signal_in_an_evaluation_costs_nothing(jobs, tmp_path) -> None:
    """A signal while a model is evaluated saves and leaves; the evaluation is made up for."""
    settings = {"epochs": 3}
    whole, stopped, resumed = jobs(
        {"out": str(tmp_path / "whole"), "settings": settings, "interrupted": 0},
        {"out": str(tmp_path / "parts"), "settings": settings, "interrupted": 2},
        {
            "out": str(tmp_path / "parts"),
            "settings": settings,
            "interrupted": 0,
            "resume": True,
        },
    )
    assert stopped["signal"] == "SIGINT"
    assert different(whole, resumed) == set()


@pytest.mark.fault("a kill at any moment", cases=KILLS)
def test_killing_a_run_costs_no_more_than_its_last_steps(jobs, tmp_path, some) -> None:
    """After each of many kills at random moments a whole checkpoint is found, and it goes on.

    In the end it is the same run in every bit as one that nobody killed.
    """
    kills = len(some(range(KILLS), 8))
    settings = {"epochs": 3 * kills, "save_steps": 1}
    whole, killed = jobs(
        {"out": str(tmp_path / "whole"), "settings": {**settings, "save_steps": 50}},
        {
            "kind": "kill",
            "out": str(tmp_path / "killed"),
            "settings": settings,
            "kills": kills,
            "longest": 0.4,
            # Of nine for each kill: a machine that is fast does not come to the end of them.
            "most_steps": 6,
            "seed": 1,
        },
    )
    assert killed.pop("kills") == kills
    assert killed.pop("resumed") > 0
    assert different(whole, killed) == set()
