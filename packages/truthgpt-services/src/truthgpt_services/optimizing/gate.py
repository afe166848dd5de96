"""The gate: whether a step pays for itself, and when.

A step is accepted if it makes the model faster or smaller beyond noise, compared with
what there was before it, makes nothing slower than it may, and leaves quality within the
bounds, compared with the model that everything started from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from truthgpt_core.optimization import Stage
from truthgpt_services.formatting import bound
from truthgpt_services.measuring.speed import gained, slowed
from truthgpt_services.results.schema import BreakEven, Gate, Measurements, Outcome, Ratio

DEFAULT_GATE = Gate(max_kl=0.05, max_perplexity_ratio=1.02, min_gain=0.02, max_slowdown=0.05)


@dataclass(frozen=True, slots=True)
class Effect:
    """What a step did to the model, apart from what was measured.

    Attributes:
        stage: of the step.
        changed: whether a tensor or the type of a module is another than before; None if that
            cannot be seen, for a step that only changes how the model is run.
        note: what was compared to know that.
        used: whether measured tokens ran through what the step put in place.
    """

    stage: Stage = Stage.WEIGHTS
    changed: bool | None = True
    note: str = ""
    used: bool = True


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a step, and why, in one sentence.

    Attributes:
        outcome: accepted, rejected, or that it cannot be told.
        reason: the sentence.
        overruled: it is accepted only because the gate says that all are.
    """

    outcome: Outcome
    reason: str
    overruled: bool = False

    @property
    def accepted(self) -> bool:
        """Whether the step stays."""
        return self.outcome is Outcome.ACCEPTED


def judge(
    candidate: Measurements,
    before: Measurements,
    *,
    decode: Ratio,
    prefill: Ratio,
    gate: Gate,
    effect: Effect = Effect(),
    objection: str = "",
    closely: bool = True,
    tokens: int = 0,
) -> Decision:
    """Decide about a step.

    Args:
        candidate: the model with the step.
        before: the model without it.
        decode: decode speed, candidate / before.
        prefill: prefill speed, candidate / before.
        gate: the bounds.
        effect: what the step did to the model.
        objection: of a criterion, as a sentence; see `criteria`.
        closely: whether enough was measured to claim a gain in speed.
        tokens: of the sequence that was timed, whose keys and values count beside the weights.
    """
    speeds = {"decodes": decode, "reads prompts": prefill}
    measured = ", ".join(
        [
            *(_speed(verb, ratio, gate) for verb, ratio in speeds.items()),
            f"weights are {candidate.weights_bytes / before.weights_bytes:.2f}× the size",
            *_cache(candidate, before, tokens),
        ]
    )
    outcome, against = Outcome.REJECTED, nothing_done(effect)
    against = against or objection or _too_slow(speeds, gate)
    if not against:
        smaller = pays_by_size(*bytes_held(candidate, before, tokens), gate)
        faster = closely and any(gained(ratio, gate) for ratio in speeds.values())
        if {"any": faster or smaller, "speed": faster, "size": smaller}[gate.gain]:
            return Decision(Outcome.ACCEPTED, f"It {measured}.")
        outcome, against = _no_gain(speeds, gate, closely=closely)
        against = f"{against}: it {measured}."
    if gate.keep_all:
        lower = against[0].lower() + against[1:]
        reason = f"Accepted because all steps are; else it would not have been: {lower}"
        return Decision(Outcome.ACCEPTED, reason, overruled=True)
    return Decision(outcome, against)


class Held(Protocol):
    """What a model holds in memory, in bytes; `Measurements` and `Opened` say it."""

    @property
    def weights_bytes(self) -> int:
        """Of weights."""

    @property
    def cache_bytes_per_token(self) -> int | None:
        """Of keys and values of one token; None if that is not known."""


def bytes_held(candidate: Held, before: Held, tokens: int) -> tuple[int, int]:
    """Return what two models hold: weights and, if both say it, keys and values of a sequence.

    Args:
        candidate: the model with a step.
        before: the model without it.
        tokens: of the sequence.
    """
    now, then = candidate.cache_bytes_per_token, before.cache_bytes_per_token
    if now is None or then is None:
        now = then = 0
    return candidate.weights_bytes + now * tokens, before.weights_bytes + then * tokens


def pays_by_size(candidate: int, before: int, gate: Gate) -> bool:
    """Return whether a model of so many bytes is smaller by what is asked for."""
    # As small as before is no gain, even if none at all was asked for.
    return candidate <= (1.0 - gate.min_gain) * before and candidate < before


def break_even(
    candidate: Measurements, before: Measurements, decode: Ratio, seconds: float
) -> BreakEven:
    """Say after how many decoded tokens a step breaks even with what it costs at first.

    Args:
        candidate: the model with the step.
        before: the model without it.
        decode: decode speed, candidate / before.
        seconds: that applying the step took.
    """
    extra = seconds + candidate.warmup_seconds - before.warmup_seconds
    rate = candidate.decode_tokens_per_second.median

    def tokens(ratio: float) -> int | None:
        if not decode.low > 1.0:
            return None
        # Without the step a token takes ratio / rate seconds, with it 1 / rate.
        return max(0, math.ceil(extra * rate / (ratio - 1.0)))

    return BreakEven(
        extra_seconds=extra,
        tokens=tokens(decode.median),
        fewest=tokens(decode.high),
        most=tokens(decode.low),
    )


_NO_GAIN = {
    "any": "Neither faster nor smaller by {} % beyond noise",
    "speed": "Not faster by {} % beyond noise",
    "size": "Not smaller by {} %",
}


def nothing_done(effect: Effect) -> str:
    """Return why nothing that is measured can be the step's doing; empty if it may be."""
    if effect.stage is Stage.EXECUTION:
        ran = "No measured token is known to have run through it, so it changes nothing."
        return "" if effect.used else ran
    note = f": {effect.note}" if effect.note else ""
    return "" if effect.changed else f"It changed nothing{note}."


def _cache(candidate: Held, before: Held, tokens: int) -> list[str]:
    now, then = candidate.cache_bytes_per_token, before.cache_bytes_per_token
    if not now or not then or now == then:
        return []
    return [f"keys and values of {tokens:,} tokens {now / then:.2f}×"]


def _too_slow(speeds: dict[str, Ratio], gate: Gate) -> str:
    for verb, ratio in speeds.items():
        if slowed(ratio, gate):
            most = bound(100 * (gate.max_slowdown or 0.0))
            return f"It {_speed(verb, ratio, gate)}: more than {most} % slower."
    return ""


def _no_gain(speeds: dict[str, Ratio], gate: Gate, *, closely: bool) -> tuple[Outcome, str]:
    """Return whether there is no gain, or too little evidence of one, and how to say it."""
    possible = gate.gain != "size" and any(
        ratio.high > 1.0 and ratio.high >= 1.0 + gate.min_gain for ratio in speeds.values()
    )
    reason = _NO_GAIN[gate.gain].format(bound(100 * gate.min_gain))
    if not possible:
        return Outcome.REJECTED, reason
    if not closely:
        return Outcome.UNDECIDED, "Not measured closely enough to claim a gain in speed"
    launches = len(speeds["decodes"].launches)
    return Outcome.UNDECIDED, f"Too little evidence of a gain after {launches} launches"


def _speed(verb: str, ratio: Ratio, gate: Gate) -> str:
    required, decimals = 1.0 + gate.min_gain, 2
    # What falls short of the gain that was asked for is not to be rounded up to it.
    while decimals < 6 and ratio.low < required <= round(ratio.low, decimals):
        decimals += 1
    ends = f"({ratio.low:.{decimals}f} to {ratio.high:.{decimals}f}×)"
    if math.isinf(ratio.high):
        return f"{verb} at a speed that was not measured closely enough"
    if not ratio.differs:
        return f"{verb} as fast within noise {ends}"
    return f"{verb} {ratio.median:.{decimals}f}× as fast {ends}"
