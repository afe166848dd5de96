"""How fast a model is beside another: several processes of each, and what they have in common.

Two processes that run the same code differ by more than their rounds do. So each model is
launched several times; in each launch all models take turns, a few tokens at a time, and the
launch gives one ratio. The interval is one over launches. It holds for both metrics and for
every look at it together, so that looking again until it decides does not make noise a gain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from truthgpt_services.results.schema import Gate, Ratio
from truthgpt_services.results.statistics import (
    CONFIDENCE,
    interval_over_launches,
    trimmed_mean,
)

FEWEST_ROUNDS, FEWEST_LAUNCHES = 5, 3
"""With fewer, no gain in speed is claimed."""

DECODE = "slices"
PREFILL = "prompts"
METRICS = (DECODE, PREFILL)
"""Fields of `Launch`: what a model may gain speed in."""

_LARGEST = 700.0
"""Exponents above this overflow."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: how many times the workers of one launch take turns.
        launches: how many processes of each model are measured before the first look at
            what was found.
        max_launches: how many at most, if the interval has not decided by then.
        seconds: that the launches of one step may take; no more looks are taken after that.
        prompts: how many times a prompt is read in a round.
        prompt_tokens: tokens of the prompt whose reading is timed.
        new_tokens: tokens that are generated in a round, the first of them with the prompt.
        slice: tokens that are decoded before it is the next model's turn.
        windows: windows of text on which quality is measured.
        window: tokens in one of them.
        decode_prompt: tokens read at once before a text is followed one at a time.
        decode_tokens: tokens of that text, its prompt included.
        lens_tokens: tokens of the window whose layers are compared.
        sample_tokens: tokens of the sample text.
        replay_tokens: tokens whose predictions are recorded with the result.
        trial_tokens: tokens that steps may try the model on, after those that judge them.
        seed: of the bootstrap.
    """

    rounds: int = 5
    launches: int = 4
    max_launches: int = 12
    seconds: float = 900.0
    prompts: int = 2
    prompt_tokens: int = 128
    new_tokens: int = 13
    slice: int = 4
    windows: int = 8
    window: int = 256
    decode_prompt: int = 32
    decode_tokens: int = 128
    lens_tokens: int = 64
    sample_tokens: int = 40
    replay_tokens: int = 512
    trial_tokens: int = 256
    seed: int = 0

    @classmethod
    def after(cls, context: int | None, **fields: Any) -> Plan:
        """Return a plan that measures what is done after a prompt of so many tokens.

        Such a prompt is read once in a round, and the text that is followed one token at a time
        begins after as many.

        Args:
            context: tokens of the prompt; None for the usual.
            fields: others of the plan.
        """
        if context is None:
            return cls(**fields)
        followed = cls.decode_tokens - cls.decode_prompt
        return cls(
            prompt_tokens=context,
            prompts=1,
            decode_prompt=context,
            decode_tokens=context + followed,
            **fields,
        )

    @property
    def text_tokens(self) -> int:
        """How many tokens of the text are looked at, windows and what is followed."""
        return max(self.windows * self.window, self.decode_tokens)

    @property
    def closely(self) -> bool:
        """Whether it is enough to claim a gain in speed."""
        return self.rounds >= FEWEST_ROUNDS and self.launches >= FEWEST_LAUNCHES

    @property
    def slices(self) -> list[int]:
        """How many tokens are decoded in each turn of a round."""
        left = self.new_tokens - 1
        return [min(self.slice, left - done) for done in range(0, left, self.slice)]

    @property
    def looks(self) -> range:
        """After how many launches the interval is looked at, to decide or to go on."""
        return range(self.launches, max(self.launches, self.max_launches) + 1, self.launches)

    @property
    def outside(self) -> float:
        """Probability that one ratio is beyond one end of its interval, at one look.

        By Bonferroni's inequality: over both metrics and all looks together it adds up to
        what lies beyond one end of an interval of `CONFIDENCE`.
        """
        return (1.0 - CONFIDENCE) / 2.0 / len(METRICS) / len(self.looks)


@dataclass
class Launch:
    """What one process of a model has measured.

    Attributes:
        prompts: seconds from prompt in to first token out, each time.
        slices: seconds for each slice of decoded tokens.
    """

    prompts: list[float] = field(default_factory=list)
    slices: list[float] = field(default_factory=list)


def log_ratio(candidate: Launch, reference: Launch, quantity: str) -> float:
    """Return the logarithm of the speed of one model over that of another, in one launch.

    A machine that is busy for a while slows both of a pair of turns, which their ratio
    does not show; a few turns that were interrupted are left out.
    """
    turns = zip(getattr(candidate, quantity), getattr(reference, quantity), strict=True)
    return trimmed_mean([math.log(other / one) for one, other in turns])


def ratio_of_launches(logs: Sequence[float], noise: Sequence[float], plan: Plan) -> Ratio:
    """Return the ratio of two speeds, with its interval.

    Args:
        logs: `log_ratio` of each launch.
        noise: the same of the baseline and the control, which only noise tells apart.
        plan: how it was measured.
    """
    middle, low, high = interval_over_launches(logs, plan.outside, spread_of=noise)
    return Ratio(
        median=math.exp(middle),
        low=math.exp(low),
        high=math.exp(high) if high < _LARGEST else math.inf,
        launches=[math.exp(each) for each in logs],
    )


def gained(ratio: Ratio, gate: Gate) -> bool:
    """Return whether a speed is a gain: the lower end, since beyond it may be noise."""
    return ratio.low > 1.0 and ratio.low >= 1.0 + gate.min_gain


def slowed(ratio: Ratio, gate: Gate) -> bool:
    """Return whether a speed is lost beyond the bound and beyond noise."""
    return gate.max_slowdown is not None and ratio.high < 1.0 - gate.max_slowdown


def undecided(ratios: Sequence[Ratio], gate: Gate, *, smaller: bool) -> bool:
    """Return whether more launches could still decide about a step.

    Args:
        ratios: of each metric, to what was there before the step.
        gate: the bounds.
        smaller: whether the step pays by its size already.
    """
    if any(slowed(each, gate) for each in ratios):
        return False
    if gate.max_slowdown is not None and any(
        each.median < 1.0 - gate.max_slowdown for each in ratios
    ):
        return True
    if (smaller and gate.gain != "speed") or gate.gain == "size":
        return False
    if any(gained(each, gate) for each in ratios):
        return False
    return not all(_is_decided(each, gate) for each in ratios)


def _is_decided(ratio: Ratio, gate: Gate) -> bool:
    """Return whether a ratio is known to be slower, or the same for all that is asked."""
    return ratio.high < 1.0 or (
        ratio.high < 1.0 + gate.min_gain and ratio.low > 1.0 - gate.min_gain
    )
