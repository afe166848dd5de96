"""Calling an optimization: its own code is run here, and what it returns is checked.

Every call of `apply`, `restore`, `check`, `was_used` or `plain_weights` of an optimization is made
through these functions, so that a mistake in a plugin is one line that names the plugin.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from truthgpt_core.optimization.contract import (
    Applied,
    Model,
    Optimization,
    OptimizationContext,
    Tensor,
    Verdict,
)
from truthgpt_core.optimization.errors import OptimizationError, author_error, naming_the_author

_NAMED = 3
"""How many names an error tells of many."""


def apply(optimization: Optimization[Any], model: Model, context: OptimizationContext) -> Applied:
    """Call `Optimization.apply`.

    Raises:
        OptimizationError: it cannot be done to this model, it failed, or what it returned is
            not an `Applied`.
    """
    kind = type(optimization)
    with naming_the_author(kind, "apply"):
        applied: object = optimization.apply(model, context)
    if not isinstance(applied, Applied):
        raise author_error(
            kind,
            "apply",
            f"returned {_described(applied)} instead of Applied",
            "It has to return Applied(model), with the changed model.",
        )
    return applied


def restore(optimization: Optimization[Any], model: Model, context: OptimizationContext) -> Model:
    """Call `Optimization.restore`.

    Raises:
        OptimizationError: it failed, or returned no model.
    """
    kind = type(optimization)
    with naming_the_author(kind, "restore"):
        restored: Model = optimization.restore(model, context)
    if not callable(getattr(restored, "state_dict", None)):
        raise author_error(
            kind,
            "restore",
            f"returned {_described(restored)} instead of a model",
            "It has to return the model, also if it changes it in place.",
        )
    return restored


def check(optimization: Optimization[Any], device: str) -> Verdict:
    """Call `Optimization.check`.

    Raises:
        OptimizationError: it failed, or returned no verdict.
    """
    kind = type(optimization)
    with naming_the_author(kind, "check"):
        verdict: object = optimization.check(device)
    if not isinstance(verdict, Verdict):
        raise author_error(
            kind,
            "check",
            f"returned {_described(verdict)} instead of Verdict",
            "It has to return Verdict.yes() or Verdict.no(REASON).",
        )
    return verdict


def was_used(optimization: Optimization[Any], model: Model) -> bool:
    """Call `Optimization.was_used`.

    Raises:
        OptimizationError: it failed.
    """
    with naming_the_author(type(optimization), "was_used"):
        return bool(optimization.was_used(model))


def plain_weights(
    optimization: Optimization[Any], name: str, module: Model
) -> Mapping[str, Tensor] | None:
    """Call `Optimization.plain_weights`.

    Raises:
        OptimizationError: it failed, or returned neither tensors by name nor None.
    """
    kind = type(optimization)
    with naming_the_author(kind, "plain_weights"):
        weights: object = optimization.plain_weights(name, module)
    if weights is None or isinstance(weights, Mapping):
        return weights
    raise author_error(
        kind,
        "plain_weights",
        f"returned {_described(weights)} for {name} instead of tensors by name",
        "It has to return a mapping, or None for a module that it did not make.",
    )


def refuse_malformed(
    optimization: Optimization[Any], applied: Applied, names: Collection[str]
) -> None:
    """See that what applying an optimization gave can be reported, saved and restored.

    Args:
        optimization: with its options.
        applied: what it gave.
        names: of all modules, parameters and buffers that the model has, or had before.

    Raises:
        OptimizationError: the coverage has names that the model does not have, or has one
            twice; or the settings are not of JSON types, or not the optimization's options.
    """
    kind = type(optimization)
    try:
        counted = Counter(
            [*applied.coverage.covered, *(name for name, _ in applied.coverage.skipped)]
        )
    except (TypeError, ValueError):
        raise author_error(
            kind,
            "apply",
            "returned a Coverage that cannot be read",
            "covered has names; skipped has pairs of a name and a reason.",
        ) from None
    unknown = [name for name in counted if name not in names]
    if unknown:
        raise author_error(
            kind,
            "apply",
            f"says that it looked at {_listed(unknown)}, which the model does not have",
            "This is an error of its author: a Coverage has the names of modules, parameters or "
            "buffers, as model.named_modules() gives them.",
        )
    twice = [name for name, number in counted.items() if number > 1]
    if twice:
        raise author_error(
            kind,
            "apply",
            f"names {_listed(twice)} more than once in its Coverage",
            "This is an error of its author: each name counts once.",
        )
    try:
        json.dumps(applied.settings)
        kind(**applied.settings)
    except (TypeError, ValueError, OptimizationError) as error:
        reason = error.message if isinstance(error, OptimizationError) else str(error)
        raise author_error(
            kind,
            "apply",
            f"returned settings that it could not be restored with ({reason})",
            "Settings are its options, by name, in JSON types.",
        ) from error


def _described(value: object) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"


def _listed(names: list[str]) -> str:
    # By repr: a name may be no text at all, or have what would move a terminal.
    text = ", ".join(repr(name)[:80] for name in names[:_NAMED])
    more = len(names) - _NAMED
    return f"{text} and {more:,} more" if more > 0 else text
