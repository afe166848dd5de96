"""What a run came to, in a sentence that names the gain and, beside it, what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from truthgpt_services.formatting import ratio
from truthgpt_services.report.costs import Cost, find_costs
from truthgpt_services.results.schema import Outcome, Step, Variant


def summary(
    variants: Sequence[Variant],
    steps: Sequence[Step],
    accepted: str,
    *,
    file_bytes: int = 0,
    closely: bool = True,
) -> str:
    """Say what became of the model.

    Args:
        variants: the baseline first.
        steps: that were asked for.
        accepted: the name of the variant that is the result.
        file_bytes: size of the source's weight files in bytes; 0 if there are none.
        closely: False if speed was not measured closely enough to claim any.
    """
    baseline = variants[0]
    result = next(variant for variant in variants if variant.name == accepted)
    if not steps:
        return "The model was measured as it is: no step was asked for."
    if result is baseline:
        undecided = [step.name for step in steps if step.outcome is Outcome.UNDECIDED]
        unknown = (
            f" (of {', '.join(undecided)} it cannot be told whether it helps)" if undecided else ""
        )
        return f"No step was accepted{unknown}: the output is the model as it was."
    # Of a single launch the interval has no end.
    closely = closely and math.isfinite(result.decode_ratio.high)
    quality = result.measured.quality
    if not quality.is_finite:
        return (
            f"The predictions of {accepted} are not finite numbers; "
            "it was accepted because all steps were to be."
        )
    costs = find_costs(
        result.measured,
        baseline.measured,
        decode=result.decode_ratio,
        prefill=result.prefill_ratio,
        file_bytes=file_bytes,
        closely=closely,
    )
    return (
        f"{accepted} {_gains(result, baseline, closely=closely)}{_losses(costs)}. "
        f"KL {quality.kl_mean:.4f}, same first choice for {quality.top1_agreement:.1%} of tokens."
        f"{_faster_elsewhere(variants, result)}"
    )


def _gains(result: Variant, baseline: Variant, *, closely: bool) -> str:
    over = result.measured.weights_bytes / baseline.measured.weights_bytes
    size = f"weights {ratio(over)} the size"
    now, then = (each.measured.cache_bytes_per_token for each in (result, baseline))
    if now and then and now != then:
        size = f"weights {ratio(over)} and keys and values {ratio(now / then)} the size"
    if not closely:
        return f"has {size} (its speed was not measured closely enough)"
    decode, prefill = result.decode_ratio, result.prefill_ratio
    faster = [
        f"{verb} {ratio(measured.median)} as fast"
        for verb, measured in (("decodes", decode), ("reads prompts", prefill))
        if measured.low > 1.0
    ]
    if faster:
        return f"{' and '.join(faster)} as the baseline, with {size}"
    if decode.high < 1.0:
        return f"has {size} of the baseline's"
    return f"decodes as fast as the baseline within noise, with {size}"


def _faster_elsewhere(variants: Sequence[Variant], result: Variant) -> str:
    """Say if another engine runs the model as it was faster than the result is run."""
    baseline = variants[0]
    for each in variants[1:]:
        speed = each.decode_ratio.median
        is_as_it_was = not each.steps and each.measured.engine != baseline.measured.engine
        if is_as_it_was and speed > result.decode_ratio.median:
            engine = each.measured.engine
            return f" The engine {engine} decodes the model as it was faster: --engine {engine}."
    return ""


def _losses(costs: Sequence[Cost]) -> str:
    if not costs:
        return ""
    clauses = [cost.brief for cost in costs]
    return f", at a cost: {'; '.join(clauses)}"
