"""Criteria: what plugins, and this package, object to in a step that was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from truthgpt_core.errors import TruthGPTError, in_one_line
from truthgpt_core.evaluation import Measured
from truthgpt_core.hookspecs import Hooks
from truthgpt_core.optimization import OptimizationError
from truthgpt_services.results.schema import Gate, Measurements, Samples


def objection(
    hooks: Hooks, candidate: Measured, before: Measured, baseline: Measured, gate: Gate
) -> str:
    """Ask all plugins about a step; return the first objection, or an empty text.

    Raises:
        OptimizationError: a criterion failed, so that it is not known whether it objects.
    """
    try:
        found: list[object] = list(
            hooks.judge_step(
                candidate=candidate, before=before, baseline=baseline, gate=gate.model_dump()
            )
        )
    except (TruthGPTError, KeyboardInterrupt):
        raise
    except (Exception, SystemExit) as error:
        raise OptimizationError(f"A criterion failed: {in_one_line(error)}") from error
    for each in found:
        if not isinstance(each, str):
            raise OptimizationError(
                f"A criterion returned a {type(each).__name__} instead of an objection"
            )
        if each:
            return each
    return ""


def as_measured(name: str, found: Measurements) -> Measured:
    """Return what was measured of a variant, as criteria are given it."""
    quantities: dict[str, float] = {}
    for field, value in found:
        if isinstance(value, Samples):
            quantities[field] = value.median
        elif isinstance(value, int | float):
            quantities[field] = value
    quantities.update(
        {field: value for field, value in found.quality if value is not None},
        **{f"{each.metric}.{each.name}": each.value for each in found.metrics},
    )
    return Measured(name, quantities)


def quality_lost(candidate: Measured, baseline: Measured, gate: Mapping[str, Any]) -> str | None:
    """Return that a step costs more quality than it may; None if it does not."""
    bounds, found, first = Gate.model_validate(gate), candidate.quantities, baseline.quantities
    divergence = max(found["kl_mean"], found["decode_kl_mean"])
    perplexity = found["perplexity"] / first["perplexity"]
    if not all(math.isfinite(found[each]) for each in ("perplexity", "kl_mean", "decode_kl_mean")):
        return "Its predictions are not finite numbers."
    if divergence > bounds.max_kl:
        return f"It loses quality: KL to the baseline is {divergence:.4f}, above {bounds.max_kl:g}."
    if perplexity > bounds.max_perplexity_ratio:
        return (
            f"It loses quality: perplexity is {perplexity:.3f}× the baseline's, "
            f"above {bounds.max_perplexity_ratio:g}×."
        )
    flips = max(found.get("flips", 0.0), found.get("decode_flips", 0.0))
    if bounds.max_flips is not None and flips > bounds.max_flips:
        return f"It loses quality: {flips:.4f} of tokens flip, above {bounds.max_flips:g}."
    return None
