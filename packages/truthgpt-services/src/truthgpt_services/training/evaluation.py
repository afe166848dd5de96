"""How well a model predicts the validation data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from truthgpt_services.training.batches import Batch, count_targets
from truthgpt_services.training.errors import TrainingError
from truthgpt_services.training.loss import summed_loss
from truthgpt_services.training.precision import autocast
from truthgpt_services.training.processes import Processes
from truthgpt_services.training.rng import preserved_random_state


class EvaluationInterrupted(Exception):  # noqa: N818 - nothing has failed
    """A signal came during an evaluation."""


def evaluate(
    model: Any,
    loader: Iterable[Batch],
    device: torch.device,
    *,
    processes: Processes,
    precision: str,
) -> dict[str, float]:
    """Return how well a model predicts; all processes call this.

    Args:
        model: on the device.
        loader: the batches.
        device: where to compute.
        processes: that compute it; signals to them are looked at after each batch.
        precision: in which matrix products are computed.

    Returns:
        `loss` in nats per token, `perplexity`, and `tokens` that were predicted.

    Raises:
        TrainingError: there is nothing to predict.
        EvaluationInterrupted: a signal came.
    """
    total, targets = 0.0, 0
    training = model.training
    model.eval()
    try:
        with preserved_random_state(), torch.no_grad():
            for batch in loader:
                with autocast(precision, device):
                    loss = summed_loss(model, processes.share(batch, device))
                total += float(processes.total(loss))
                targets += count_targets(batch)
                if processes.leaving:
                    raise EvaluationInterrupted
    finally:
        model.train(training)
    if targets == 0:
        raise TrainingError(
            "There is no token to predict in the validation data",
            hint="Look at its texts, or set data.validation_fraction.",
        )
    loss_per_token = total / targets
    perplexity = math.exp(loss_per_token) if loss_per_token < 700 else math.inf
    return {
        "loss": loss_per_token,
        "perplexity": perplexity,
        "tokens": targets,
    }
