"""What predictions of a text, token by token, come to: means, percentiles and their errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from truthgpt_services.results.schema import Quality
from truthgpt_services.results.statistics import (
    blocks,
    mean_with_error,
    percentile_with_error,
)

Windows: TypeAlias = Sequence[Sequence[float]]
"""For each window of a text, a value for each token that was predicted."""

TAIL = 0.999


def compared(
    whole: Mapping[str, Windows], decoded: Mapping[str, Windows], *, seed: int = 0
) -> Quality:
    """Put together how a model predicts a text beside the baseline.

    Args:
        whole: of forward passes over whole windows: what `Bench.compare` returns, each
            with one list for each window, and under `reference` the baseline's `nll`.
        decoded: the same of predictions one token at a time.
        seed: of the bootstrap.
    """
    decode = {f"decode_{name}": value for name, value in _figures(decoded, seed).items()}
    return Quality(**_figures(whole, seed), **decode)


def alone(whole: Windows, decoded: Windows) -> Quality:
    """Put together how the baseline predicts a text, given its likelihoods.

    Args:
        whole: negative log-likelihoods in nats, of forward passes over whole windows.
        decoded: the same of predictions one token at a time.
    """
    return compared(_beside_itself(whole), _beside_itself(decoded))


def _beside_itself(likelihoods: Windows) -> dict[str, Windows]:
    nothing = [[0.0] * len(window) for window in likelihoods]
    all_of_it = [[1.0] * len(window) for window in likelihoods]
    return {
        "nll": likelihoods,
        "reference": likelihoods,
        "kl": nothing,
        "agrees": all_of_it,
        "flips": nothing,
    }


def _figures(found: Mapping[str, Windows], seed: int) -> dict[str, float]:
    # Of the same tokens: what makes a token hard for both drops out of the difference.
    more = [
        [ours - theirs for ours, theirs in zip(*pair, strict=True)]
        for pair in zip(found["nll"], found["reference"], strict=True)
    ]
    figures = {}
    figures["perplexity"], figures["perplexity_error"] = _exponential(found["nll"])
    figures["perplexity_ratio"], figures["perplexity_ratio_error"] = _exponential(more)
    for name, values in (
        ("kl_mean", found["kl"]),
        ("top1_agreement", found["agrees"]),
        ("flips", found["flips"]),
    ):
        figures[name], figures[f"{name}_error"] = mean_with_error(blocks(values))
    figures["kl_p999"], figures["kl_p999_error"] = percentile_with_error(
        blocks(found["kl"]), TAIL, seed=seed
    )
    return figures


def _exponential(values: Windows) -> tuple[float, float]:
    """Return the exponential of the mean, and its standard error by the delta method."""
    mean, error = mean_with_error(blocks(values))
    try:
        exponential = math.exp(mean)
    except OverflowError:
        return math.inf, math.nan
    return exponential, exponential * error
