"""The gate: whether a step pays for itself.

A step is kept if it makes the model faster or smaller beyond noise, compared with
what there was before it, and leaves its quality within the bounds, compared with
the model that everything started from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from truthgpt_services.report.schema import Gate, Measurements, Ratio

DEFAULT_GATE = Gate(max_kl=0.05, max_perplexity_ratio=1.02, min_gain=0.02)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a step is kept, and why, in one sentence."""

    keep: bool
    reason: str


def judge(
    candidate: Measurements,
    before: Measurements,
    baseline: Measurements,
    *,
    decode: Ratio,
    prefill: Ratio,
    gate: Gate,
) -> Decision:
    """Decide about a step.

    Args:
        candidate: the model with the step.
        before: the model without it.
        baseline: the model that everything started from.
        decode: decode speed, candidate / before.
        prefill: prefill speed, candidate / before.
        gate: the bounds.
    """
    lost = _quality_lost(candidate, baseline, gate)
    if lost:
        return Decision(keep=False, reason=lost)
    size = candidate.weights_bytes / before.weights_bytes
    faster = _gain(decode, gate) or _gain(prefill, gate)
    smaller = size <= 1.0 - gate.min_gain
    said = ", ".join(
        [
            _speed("decodes", decode),
            _speed("reads prompts", prefill),
            f"weights are {size:.2f}× the size",
        ]
    )
    if faster or smaller:
        return Decision(keep=True, reason=f"It {said}.")
    return Decision(keep=False, reason=f"Neither faster nor smaller beyond noise: it {said}.")


def _gain(ratio: Ratio, gate: Gate) -> bool:
    return ratio.low > 1.0 and ratio.median >= 1.0 + gate.min_gain


def _speed(verb: str, ratio: Ratio) -> str:
    if not ratio.differs:
        return f"{verb} no differently ({ratio.low:.2f} to {ratio.high:.2f}×)"
    return f"{verb} {ratio.median:.2f}× as fast ({ratio.low:.2f} to {ratio.high:.2f}×)"


def _quality_lost(candidate: Measurements, baseline: Measurements, gate: Gate) -> str:
    quality = candidate.quality
    divergence = max(quality.kl_mean, quality.decode_kl_mean)
    perplexity = quality.perplexity / baseline.quality.perplexity
    # Each by itself: the larger of a number and NaN can be the number.
    measured = (quality.kl_mean, quality.decode_kl_mean, perplexity)
    if not all(math.isfinite(each) for each in measured):
        return "Its predictions are not finite numbers."
    if divergence > gate.max_kl:
        return f"It loses quality: KL to the baseline is {divergence:.4f}, above {gate.max_kl:g}."
    if perplexity > gate.max_perplexity_ratio:
        return (
            f"It loses quality: perplexity is {perplexity:.3f}× the baseline's, "
            f"above {gate.max_perplexity_ratio:g}×."
        )
    return ""
