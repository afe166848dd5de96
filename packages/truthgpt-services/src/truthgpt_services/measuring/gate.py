"""The gate: whether a step pays for itself, and when.

A step is kept if it makes the model faster or smaller beyond noise, compared with
what there was before it, and leaves its quality within the bounds, compared with
the model that everything started from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from truthgpt_services.report.formatting import bound
from truthgpt_services.report.schema import BreakEven, Gate, Measurements, Ratio

DEFAULT_GATE = Gate(max_kl=0.05, max_perplexity_ratio=1.02, min_gain=0.02)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a step is kept, and why, in one sentence.

    Attributes:
        keep: whether it is.
        reason: the sentence.
        overruled: it is kept only because the gate says that all are.
    """

    keep: bool
    reason: str
    overruled: bool = False


def judge(
    candidate: Measurements,
    before: Measurements,
    baseline: Measurements,
    *,
    decode: Ratio,
    prefill: Ratio,
    gate: Gate,
    used: bool = True,
) -> Decision:
    """Decide about a step.

    Args:
        candidate: the model with the step.
        before: the model without it.
        baseline: the model that everything started from.
        decode: decode speed, candidate / before.
        prefill: prefill speed, candidate / before.
        gate: the bounds.
        used: whether the model ran through what the step put in place. If not, and it is
            no smaller, what was measured is luck.
    """
    said = ", ".join(
        [
            _speed("decodes", decode, gate),
            _speed("reads prompts", prefill, gate),
            f"weights are {candidate.weights_bytes / before.weights_bytes:.2f}× the size",
        ]
    )
    against = _quality_lost(candidate, baseline, gate)
    if not against and not used and candidate.weights_bytes >= before.weights_bytes:
        against = f"The model did not run through it, so it changes nothing: it {said}."
    if not against and not _pays(candidate, before, decode, prefill, gate):
        against = f"{_NO_GAIN[gate.gain].format(bound(100 * gate.min_gain))}: it {said}."
    if not against:
        return Decision(keep=True, reason=f"It {said}.")
    if gate.keep_all:
        told = against[0].lower() + against[1:]
        reason = f"Kept because all steps are; else it would have been taken back: {told}"
        return Decision(keep=True, reason=reason, overruled=True)
    return Decision(keep=False, reason=against)


def break_even(
    candidate: Measurements, before: Measurements, decode: Ratio, seconds: float
) -> BreakEven:
    """Say after how many decoded tokens a step has repaid what it costs at first.

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


def _pays(
    candidate: Measurements, before: Measurements, decode: Ratio, prefill: Ratio, gate: Gate
) -> bool:
    faster = _gain(decode, gate) or _gain(prefill, gate)
    smaller = candidate.weights_bytes <= (1.0 - gate.min_gain) * before.weights_bytes
    # As small as before is no gain, even if none at all was asked for.
    smaller = smaller and candidate.weights_bytes < before.weights_bytes
    return {"any": faster or smaller, "speed": faster, "size": smaller}[gate.gain]


def _gain(ratio: Ratio, gate: Gate) -> bool:
    # The lower end: a median beyond what was asked for can still be luck.
    return ratio.low > 1.0 and ratio.low >= 1.0 + gate.min_gain


def _speed(verb: str, ratio: Ratio, gate: Gate) -> str:
    asked, decimals = 1.0 + gate.min_gain, 2
    # What falls short of the gain that was asked for is not to be rounded up to it.
    while decimals < 6 and ratio.low < asked <= round(ratio.low, decimals):
        decimals += 1
    ends = f"({ratio.low:.{decimals}f} to {ratio.high:.{decimals}f}×)"
    if not ratio.differs:
        return f"{verb} no differently {ends}"
    return f"{verb} {ratio.median:.{decimals}f}× as fast {ends}"


def _quality_lost(candidate: Measurements, baseline: Measurements, gate: Gate) -> str:
    quality = candidate.quality
    divergence = max(quality.kl_mean, quality.decode_kl_mean)
    perplexity = quality.perplexity / baseline.quality.perplexity
    if not quality.is_finite:
        return "Its predictions are not finite numbers."
    if divergence > gate.max_kl:
        return f"It loses quality: KL to the baseline is {divergence:.4f}, above {gate.max_kl:g}."
    if perplexity > gate.max_perplexity_ratio:
        return (
            f"It loses quality: perplexity is {perplexity:.3f}× the baseline's, "
            f"above {gate.max_perplexity_ratio:g}×."
        )
    flips = max(quality.flips or 0.0, quality.decode_flips or 0.0)
    if gate.max_flips is not None and flips > gate.max_flips:
        return f"It loses quality: {flips:.4f} of tokens flip, above {gate.max_flips:g}."
    return ""
