"""The Kullback-Leibler divergence of predictions."""

from __future__ import annotations

import torch


def divergence(expected: torch.Tensor, predicted: torch.Tensor) -> list[float]:
    """KL(expected || predicted) for each token, in nats.

    Args:
        expected: log-probabilities of shape (tokens, vocabulary).
        predicted: the same.
    """
    probabilities = expected.exp()
    # Tokens that a model rules out have log-probability -inf in both, and count nothing.
    terms = torch.where(probabilities > 0, probabilities * (expected - predicted), 0.0)
    # Float error makes the divergence of equal predictions a little less than nothing.
    found: list[float] = terms.sum(-1, dtype=torch.float64).clamp_min(0.0).tolist()
    return found
