"""Saying why an optimization cannot be had, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from truthgpt_core.errors import TruthGPTError, meant_or_known
from truthgpt_core.optimization import OptimizationError
from truthgpt_core.plugin_system import catalogue
from truthgpt_core.plugin_system.discovery import ALIASES, OPTIMIZATIONS
from truthgpt_core.plugin_system.plugin import PluginError, PluginRow, State


def not_available(
    name: str, rows: Iterable[PluginRow], available: Sequence[str], cause: TruthGPTError
) -> OptimizationError:
    """Return the error for an optimization that the factory could not give.

    Args:
        name: its name, or an alias, as it was asked for.
        rows: all plugins that there are.
        available: the optimizations that can be had.
        cause: what the factory said.
    """
    for row in rows:
        declared = row.distribution and {
            *row.distribution.names(OPTIMIZATIONS),
            *row.distribution.names(ALIASES),
        }
        if declared and name in declared:
            return OptimizationError(
                f'"{name}" comes with plugin "{row.name}", but {_why_not(row, cause)}'
            )
    have = f"Available: {', '.join(available)}." if available else "None is installed."
    missing = catalogue.distribution_of("optimizations", name)
    if missing:
        return OptimizationError(
            f'Optimization "{name}" is not installed',
            hint=f"It comes with {missing}: pip install {missing}. {have}",
        )
    candidates = [*available, *catalogue.known("optimizations")]
    return OptimizationError(
        f'There is no optimization named "{name}"', hint=meant_or_known(name, candidates, have)
    )


def _why_not(row: PluginRow, cause: TruthGPTError) -> str:
    if row.reason:
        return row.reason
    if row.state is not State.ACTIVE:
        return "it is not active"
    # What the loader said, without what the factory says of it.
    return str(cause.__cause__ if isinstance(cause.__cause__, PluginError) else cause)
