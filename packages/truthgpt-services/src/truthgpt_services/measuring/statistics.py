"""Medians and their intervals, without numpy: this runs in the process that only orchestrates."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import median

CONFIDENCE = 0.95
RESAMPLES = 2000


def interval_of_median(
    values: Sequence[float], *, seed: int = 0, confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """Return the median and a bootstrap interval of it, by the percentile method.

    Args:
        values: at least one.
        seed: of the resampling; the same values and seed give the same interval.
        confidence: of the interval, below 1.

    Returns:
        Median, lower end, upper end. One value is its own interval.

    See:
        Efron, B. (1979). Bootstrap methods: another look at the jackknife.
        The Annals of Statistics 7(1).
    """
    generator = random.Random(seed)  # noqa: S311 - statistics, not secrets
    resampled = sorted(median(generator.choices(values, k=len(values))) for _ in range(RESAMPLES))
    outside = (1.0 - confidence) / 2.0
    low = resampled[int(outside * RESAMPLES)]
    high = resampled[min(RESAMPLES - 1, int((1.0 - outside) * RESAMPLES))]
    return median(values), low, high


def paired_ratio(
    candidate: Sequence[float], reference: Sequence[float], *, seed: int = 0
) -> tuple[float, float, float]:
    """Return the median ratio candidate / reference of pairs measured together, and its interval.

    A machine that is busy for a while slows both of a pair, which the ratio does not show.

    Raises:
        ValueError: there are not as many of one as of the other, or none.
    """
    ratios = [one / other for one, other in zip(candidate, reference, strict=True)]
    if not ratios:
        raise ValueError("no pairs were measured")
    return interval_of_median(ratios, seed=seed)
