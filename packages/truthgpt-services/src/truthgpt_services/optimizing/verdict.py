"""What becomes of a step that was measured, and what the report says beside it."""

from __future__ import annotations

from typing import Any

from truthgpt_core.hookspecs import Hooks
from truthgpt_services.measuring.protocol import BuiltStep
from truthgpt_services.measuring.speed import DECODE, PREFILL
from truthgpt_services.optimizing.candidates import MadeVariant
from truthgpt_services.optimizing.criteria import as_measured, objection
from truthgpt_services.optimizing.gate import Decision, Effect, break_even, judge
from truthgpt_services.optimizing.request import OptimizeFile
from truthgpt_services.optimizing.trials import Trials
from truthgpt_services.report.costs import costs


def decide(
    made: MadeVariant,
    before: MadeVariant,
    built: BuiltStep,
    effect: Effect,
    *,
    trials: Trials,
    request: OptimizeFile,
    hooks: Hooks,
    file_bytes: int,
) -> tuple[Decision, dict[str, Any]]:
    """Let the gate, and the criteria of all plugins, decide about a step.

    Args:
        made: the model with the step, measured.
        before: the model without it.
        built: what its worker said of the step.
        effect: what the step did to the model.
        trials: what was measured.
        request: with the gate.
        hooks: of the plugins.
        file_bytes: the size of the source's weight files.

    Returns:
        The decision, and further fields of the `Step` in the report.

    Raises:
        OptimizationError: a criterion failed.
    """
    plan, gate = request.plan, request.gate
    measured, earlier = trials.measurements(made), trials.measurements(before)
    baseline = trials.measurements(trials.baseline)
    decode = trials.ratio(made, before, DECODE)
    prefill = trials.ratio(made, before, PREFILL)
    closely = plan.closely and len(decode.launches) >= plan.launches
    decision = judge(
        measured,
        earlier,
        decode=decode,
        prefill=prefill,
        gate=gate,
        effect=effect,
        objection=objection(
            hooks,
            as_measured(made.name, measured),
            as_measured(before.name, earlier),
            as_measured(trials.baseline.name, baseline),
            gate,
        ),
        closely=closely,
        tokens=trials.sequence_tokens,
    )
    return decision, {
        "variant": made.name,
        "against": before.name,
        "decode_ratio": decode,
        "prefill_ratio": prefill,
        "break_even": break_even(measured, earlier, decode, built.seconds),
        "overruled": decision.overruled,
        "costs": costs(
            measured,
            earlier,
            decode=decode,
            prefill=prefill,
            file_bytes=file_bytes,
            closely=closely,
        ),
    }
