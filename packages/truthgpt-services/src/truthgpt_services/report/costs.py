"""What an optimization costs beside what it gains: each quantity that got worse.

Divergence and perplexity are not among them: they have bounds of their own, and they are
always shown.
"""

from __future__ import annotations

from dataclasses import dataclass

from truthgpt_services.formatting import (
    ARROW,
    DASH,
    TIMES,
    ratio,
    ratio_interval,
    samples,
    seconds,
    size,
)
from truthgpt_services.results.schema import Measurements, Ratio

DECODE, PREFILL, FIRST_TOKEN = "Decode speed", "Prefill speed", "First token"
WEIGHTS, PEAK, SAVED = "Weights in memory", "Peak memory", "Saved files"
CACHE = "Keys and values of a token"
LOAD, WARM_UP = "Load", "Warm-up"

PEAK_MEMORY = 1.05
"""The peak of the same code differs by a few percent from one process to the next."""
SIZE = 1.01
"""Less than that is headers and alignment."""
SLOWER_START, START_SECONDS = 2.0, 5.0
"""Loading and warming up are measured once, so only a large difference counts."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One quantity that got worse.

    Attributes:
        name: what it is, as in the tiles of the page.
        figure: how much worse, in a word.
        detail: what the figure is made of.
        brief: a clause with its figure.
        interval: the interval of that figure; empty if it has none.
    """

    name: str
    figure: str
    detail: str
    brief: str
    interval: str = ""

    @property
    def clause(self) -> str:
        """The clause with its interval, as `Step.costs` holds it."""
        return f"{self.brief} ({self.interval})" if self.interval else self.brief


def find_costs(
    candidate: Measurements,
    before: Measurements,
    *,
    decode: Ratio,
    prefill: Ratio,
    file_bytes: int,
    closely: bool = True,
) -> list[Cost]:
    """Return what got worse, speed first.

    Args:
        candidate: the model with the optimization.
        before: the model without it.
        decode: decode speed, candidate / before.
        prefill: prefill speed, candidate / before.
        file_bytes: size of the source's weight files in bytes, which saved files are held
            against.
        closely: False if speed was not measured closely enough to say anything about it;
            memory and files still are compared.

    Returns:
        A speed counts as worse if its whole interval is below 1, and the first token if
        prompts are read slower; a peak beyond 5 % more; load and warm-up beyond twice the time
        and 5 s more. Files count only in the step that made them larger than the source's.
    """
    found: list[Cost] = []
    if closely:
        found += _speeds(candidate, before, decode, prefill)
    found += _sizes(candidate, before, file_bytes)
    for name, after, earlier in (
        (LOAD, candidate.load_seconds, before.load_seconds),
        (WARM_UP, candidate.warmup_seconds, before.warmup_seconds),
    ):
        if after > SLOWER_START * earlier and after - earlier > START_SECONDS:
            found.append(_time(name, after, earlier))
    return found


def costs(
    candidate: Measurements,
    before: Measurements,
    *,
    decode: Ratio,
    prefill: Ratio,
    file_bytes: int,
    closely: bool = True,
) -> list[str]:
    """Return what got worse as clauses with their figures, for `Step.costs`.

    The arguments are those of `find_costs`.
    """
    found = find_costs(
        candidate,
        before,
        decode=decode,
        prefill=prefill,
        file_bytes=file_bytes,
        closely=closely,
    )
    return [cost.clause for cost in found]


def _speeds(
    candidate: Measurements, before: Measurements, decode: Ratio, prefill: Ratio
) -> list[Cost]:
    found: list[Cost] = []
    for name, verb, measured, after, earlier in (
        (
            DECODE,
            "decodes",
            decode,
            candidate.decode_tokens_per_second,
            before.decode_tokens_per_second,
        ),
        (
            PREFILL,
            "reads prompts",
            prefill,
            candidate.prefill_tokens_per_second,
            before.prefill_tokens_per_second,
        ),
    ):
        if measured.high < 1.0:
            figure, ends = ratio_interval(measured)
            ends = f"{ends.replace(DASH, ' to ')}{TIMES}"
            rates = f"{samples(after)[0]} against {samples(earlier)[0]} tok/s"
            found.append(Cost(name, figure, rates, f"{verb} {figure} as fast", ends))
    after, earlier = candidate.first_token_seconds, before.first_token_seconds
    if prefill.high < 1.0 and after.median > earlier.median:
        found.append(_time(FIRST_TOKEN, after.median, earlier.median))
    return found


def _sizes(candidate: Measurements, before: Measurements, file_bytes: int) -> list[Cost]:
    found: list[Cost] = []
    saved, weights, peak = (
        candidate.saved_bytes,
        candidate.weights_bytes,
        candidate.peak_memory_bytes,
    )
    if saved > SIZE * max(file_bytes, before.saved_bytes) and file_bytes:
        sizes = f"{size(saved)}, source file {size(file_bytes)}"
        brief = f"saved files {sizes}"
        detail = f"{size(saved)} against {size(file_bytes)} of the source file"
        found.append(Cost(SAVED, ratio(saved / file_bytes), detail, brief))
    for name, least, after, earlier in (
        (WEIGHTS, SIZE, weights, before.weights_bytes),
        (CACHE, SIZE, candidate.cache_bytes_per_token or 0, before.cache_bytes_per_token or 0),
        (PEAK, PEAK_MEMORY, peak, before.peak_memory_bytes),
    ):
        if after > least * earlier and earlier:
            brief = f"{name.lower()} {size(after)}, before {size(earlier)}"
            detail = f"{size(after)} against {size(earlier)}"
            found.append(Cost(name, ratio(after / earlier), detail, brief))
    return found


def _time(name: str, after: float, before: float) -> Cost:
    return Cost(
        name,
        seconds(after),
        f"against {seconds(before)}",
        f"{name.lower()} {seconds(before)} {ARROW} {seconds(after)}",
    )
