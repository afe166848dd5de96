"""What hooks of training are told: how far a run has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """How far training has come, after a step of the optimizer.

    Attributes:
        step: steps so far.
        total_steps: steps that there will be at most; None if that is not known.
        epoch: the epoch under way, from 0.
        last_of_epoch: whether the step was the last one of it.
        tokens: tokens trained on so far, padding left out.
        loss: of the step, in nats per token.
        metrics: of the newest evaluation, by name; empty before the first.
    """

    step: int
    total_steps: int | None
    epoch: int
    last_of_epoch: bool
    tokens: int
    loss: float
    metrics: Mapping[str, float]
