"""What watches over a run: non-finite losses, spikes, and validation that stands still."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from truthgpt_services.training.config_sections import TrainingSection
from truthgpt_services.training.errors import TrainingError
from truthgpt_services.training.state import Progress

_WINDOW = 64
_ENOUGH = 16
"""Losses before a median says anything."""

Refusal = Literal["skip", "roll_back"]


@dataclass(frozen=True, slots=True)
class Refused:
    """A step that the optimizer must not take.

    Attributes:
        action: what to do instead.
        reason: what is wrong, where.
    """

    action: Refusal
    reason: str


class StepGuard:
    """Judges each step before the optimizer takes it.

    Args:
        settings: with the policy.
    """

    def __init__(self, settings: TrainingSection) -> None:
        self._policy = settings.non_finite
        self._most = settings.max_non_finite
        self._factor = settings.spike_factor
        self._losses: deque[float] = deque(maxlen=_WINDOW)
        self._in_a_row = 0
        self._rolled_back = 0

    def check(self, loss: float, norm: float, where: str, *, scaled: bool) -> Refused | None:
        """Judge a step.

        Args:
            loss: its loss.
            norm: the norm of its gradients.
            where: the step and its batches, in words.
            scaled: whether a scaler is at work. It leaves out a step whose gradients
                overflow by itself, and tries a smaller scale.

        Returns:
            Why the step must not be taken, and what to do; None if it may.

        Raises:
            TrainingError: the policy is to stop, or there were too many.
        """
        if math.isfinite(loss) and math.isfinite(norm):
            self._in_a_row = 0
            return None
        what = "loss" if not math.isfinite(loss) else "norm of the gradients"
        reason = f"The {what} is {loss if what == 'loss' else norm} at {where}"
        self._in_a_row += 1
        overflow = scaled and math.isfinite(loss)
        if self._policy == "stop" and not overflow:
            raise TrainingError(
                reason,
                hint="The optimizer did not take the step. Look at that data, lower "
                "training.learning_rate, or set training.non_finite to skip or roll_back.",
            )
        # A scaler begins with a scale that is too large, and halves it until it fits.
        most = max(self._most, 32) if overflow else self._most
        if self._in_a_row > most or self._rolled_back >= self._most:
            count = max(self._in_a_row, self._rolled_back)
            raise TrainingError(
                f"{reason}, after {count} steps that were refused",
                hint="Look at the data, or lower training.learning_rate.",
            )
        if overflow or self._policy == "skip":
            return Refused("skip", reason)
        self._rolled_back += 1
        return Refused("roll_back", reason)

    def spike(self, loss: float) -> float | None:
        """Take in the loss of a step; return the running median if it is far above it."""
        usual = median(self._losses) if len(self._losses) >= _ENOUGH else math.inf
        self._losses.append(loss)
        return usual if loss > self._factor * usual else None

    def state_dict(self) -> dict[str, Any]:
        """Return what it remembers."""
        return {
            "losses": list(self._losses),
            "in_a_row": self._in_a_row,
            "rolled_back": self._rolled_back,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember what `state_dict` returned."""
        self._losses = deque(state.get("losses", ()), maxlen=_WINDOW)
        self._in_a_row = state.get("in_a_row", 0)
        self._rolled_back = state.get("rolled_back", 0)


def note_evaluation(progress: Progress, loss: float, settings: TrainingSection) -> None:
    """Keep in mind whether a validation loss is the best so far."""
    least = math.inf if progress.best is None else progress.best
    if loss < least - (settings.early_stopping_min_delta if progress.best is not None else 0.0):
        progress.best, progress.best_step = loss, progress.step
        progress.evaluations_without_better = 0
    else:
        progress.evaluations_without_better += 1


def why_stop_early(progress: Progress, settings: TrainingSection) -> str | None:
    """Return why training ends early; None if it goes on."""
    patience = settings.early_stopping_patience
    if patience is None or progress.evaluations_without_better < patience:
        return None
    if progress.best is None:
        return f"no validation loss was a finite number in {patience} evaluations"
    return (
        f"the validation loss has not fallen below {progress.best:.4f}, of step "
        f"{progress.best_step}, in {patience} evaluations"
    )
