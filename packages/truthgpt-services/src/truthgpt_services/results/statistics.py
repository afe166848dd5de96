"""Medians, means and percentiles with what is not known of them.

Without numpy: this runs in the process that only orchestrates.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from statistics import fmean, median, stdev

CONFIDENCE = 0.95
RESAMPLES = 2000

BLOCK = 32
"""Tokens of a block. Errors of a small model on the default text grow up to about this length."""
LEAST_BLOCKS = 8
"""Of a short text the blocks are shorter: fewer than these would tell nothing of a spread."""


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
    low, high = _interval(lambda draw: median(draw(values)), seed, confidence)
    return median(values), low, high


def interval_of_speeds(
    launches: Sequence[Sequence[float]], *, seed: int = 0
) -> tuple[float, float, float]:
    """Return the middle of values above 0 that several launches have measured, and an interval.

    Args:
        launches: for each launch its values, at least one.
        seed: of the resampling, if there is a single launch.

    Returns:
        Of several launches the geometric mean of their medians and a t interval of it; of a
        single one the median and a bootstrap interval, which knows nothing of other launches.
    """
    if len(launches) == 1:
        return interval_of_median(launches[0], seed=seed)
    logs = [math.log(median(launch)) for launch in launches]
    middle, low, high = interval_over_launches(logs, (1.0 - CONFIDENCE) / 2.0)
    return math.exp(middle), math.exp(low), math.exp(high)


def trimmed_mean(values: Sequence[float], share: float = 0.2) -> float:
    """Return the mean of the values that are left without so large a share at each end.

    Nearly as sharp as the mean where noise is normal, and not moved by a few interruptions.
    """
    cut = int(share * len(values))
    return fmean(sorted(values)[cut : len(values) - cut])


def interval_over_launches(
    values: Sequence[float], outside: float, *, spread_of: Sequence[float] = ()
) -> tuple[float, float, float]:
    """Return the mean of one value for each launch, and a t interval of it.

    Two processes that run the same code differ by more than their rounds do, so what was
    repeated is the launch: rounds only make the value of a launch sharper.

    Args:
        values: one for each launch, at least one.
        outside: probability that the mean is beyond one end of the interval.
        spread_of: other values, of which it is known that only noise tells them apart: the
            interval is no narrower than one with their spread.

    Returns:
        Mean, lower end, upper end. A single launch tells nothing of the spread: the ends are
        infinite.

    See:
        Kalibera, T. and Jones, R. (2013). Rigorous benchmarking in reasonable time. ISMM '13.
    """
    middle = fmean(values)
    if len(values) < 2:
        return middle, -math.inf, math.inf
    spread = stdev(values)
    if len(spread_of) >= 2:
        # Of a few launches the spread can be small by chance.
        spread = max(spread, stdev(spread_of))
    half = student_t(1.0 - outside, len(values) - 1) * spread / math.sqrt(len(values))
    return middle, middle - half, middle + half


def student_t(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t distribution, for a probability of 0.5 or more.

    Args:
        probability: that a value is below the quantile, below 1.
        freedom: degrees of freedom, at least 1.

    See:
        Abramowitz, M. and Stegun, I. (1964). Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    low, high = 0.0, 1.0
    while _within(high, freedom) < 2.0 * probability - 1.0:
        low, high = high, 2.0 * high
    for _ in range(100):
        middle = (low + high) / 2.0
        if _within(middle, freedom) < 2.0 * probability - 1.0:
            low = middle
        else:
            high = middle
    return high


def _within(value: float, freedom: int) -> float:
    """Return the probability that a t-distributed value is at most so far from 0."""
    angle = math.atan(value / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for index in range(freedom // 2):
        total += term
        term *= cosine**2 * (2 * index + 1 + odd) / (2 * index + 2 + odd)
    if odd:
        return 2.0 / math.pi * (angle + sine * total)
    return sine * total


def unpaired_ratio(
    candidate: Sequence[float], reference: Sequence[float], *, seed: int = 0
) -> tuple[float, float, float]:
    """Return the ratio of two medians that were measured apart, and its bootstrap interval.

    It knows the noise within each run, and nothing of what differed between the two.
    """
    low, high = _interval(
        lambda draw: median(draw(candidate)) / median(draw(reference)), seed, CONFIDENCE
    )
    return median(candidate) / median(reference), low, high


def blocks(windows: Sequence[Sequence[float]]) -> list[list[float]]:
    """Cut the values of consecutive tokens into blocks, none of them across two windows.

    Neighboring tokens are hard or easy together, so an error that takes each for
    itself is too small. Blocks are taken as independent of each other instead.

    Args:
        windows: for each window of a text, a value for each token.

    See:
        Carlstein, E. (1986). The use of subseries values for estimating the variance of
        a general statistic from a stationary sequence. The Annals of Statistics 14(3).
    """
    tokens = sum(len(window) for window in windows)
    length = max(1, min(BLOCK, tokens // LEAST_BLOCKS))
    return [
        list(window[at : at + length]) for window in windows for at in range(0, len(window), length)
    ]


def mean_with_error(cut: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the mean of all values, and its standard error from the spread of the blocks.

    Args:
        cut: blocks, none of them empty; with a single one the error is NaN: unknown.
    """
    count = sum(len(block) for block in cut)
    mean = fmean(value for block in cut for value in block)
    if len(cut) < 2:
        return mean, math.nan
    # Products and not powers: those of a float raise where it overflows.
    sums = [sum(value - mean for value in block) for block in cut]
    squares = sum(each * each for each in sums)
    return mean, math.sqrt(squares * len(cut) / (len(cut) - 1)) / count


def percentile_with_error(
    cut: Sequence[Sequence[float]], share: float, *, seed: int = 0
) -> tuple[float, float]:
    """Return a percentile of all values, and its standard error by resampling blocks.

    Args:
        cut: blocks, none of them empty.
        share: of the values that are below it or equal, below 1.
        seed: of the resampling.

    Returns:
        Both are NaN if any value is; so is the error if any is infinite.
    """
    ranked = sorted(
        ((value, index) for index, block in enumerate(cut) for value in block), reverse=True
    )
    if any(math.isnan(value) for value, _ in ranked):
        return math.nan, math.nan

    def percentile(drawn: Sequence[int]) -> float:
        times = [0] * len(cut)
        for index in drawn:
            times[index] += 1
        count = sum(len(cut[index]) for index in drawn)
        above = count - min(count - 1, int(share * count))
        # Only the tail is walked, which is what makes thousands of resamples cheap.
        for value, index in ranked:
            above -= times[index]
            if above <= 0:
                return value
        raise AssertionError("there are more values than are above the percentile")

    every = range(len(cut))
    found = percentile(every)
    if math.isinf(ranked[0][0]) or len(cut) < 2:
        return found, math.nan
    generator = random.Random(seed)  # noqa: S311 - statistics, not secrets
    resampled = (percentile(generator.choices(every, k=len(cut))) for _ in range(RESAMPLES))
    return found, stdev(resampled)


Draw = Callable[[Sequence[float]], list[float]]


def _interval(
    statistic: Callable[[Draw], float], seed: int, confidence: float
) -> tuple[float, float]:
    """Return both ends of a bootstrap interval; `statistic` draws its own resamples."""
    generator = random.Random(seed)  # noqa: S311 - statistics, not secrets
    resampled = sorted(
        statistic(lambda values: generator.choices(values, k=len(values))) for _ in range(RESAMPLES)
    )
    outside = (1.0 - confidence) / 2.0
    low = resampled[int(outside * RESAMPLES)]
    high = resampled[min(RESAMPLES - 1, int((1.0 - outside) * RESAMPLES))]
    return low, high
