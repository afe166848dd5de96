"""What an optimization is: the one class that an optimization's author writes.

An `Optimization` takes a model and returns a changed one, together with an
account of what it covered and what it left alone. Nothing here imports torch:
models are whatever `model` object the caller has, described by the small
protocols below as far as this package looks at them.
"""

from truthgpt_core.optimization.contract import (
    Applied,
    Coverage,
    LayerChoice,
    Model,
    Note,
    Optimization,
    OptimizationContext,
    Progress,
    SourceModel,
    Stage,
    Verdict,
    help_requests,
    in_order,
    no_fill,
    no_note,
    no_progress,
    parse_applied,
    refuse_impossible,
)
from truthgpt_core.optimization.errors import OptimizationError
from truthgpt_core.optimization.options import Options
from truthgpt_core.optimization.stored_weights import StoredMatmul, StoredMatrix, StoresMatrix

__all__ = [
    "Applied",
    "Coverage",
    "LayerChoice",
    "Model",
    "Note",
    "Optimization",
    "OptimizationContext",
    "OptimizationError",
    "Options",
    "Progress",
    "SourceModel",
    "Stage",
    "StoredMatmul",
    "StoredMatrix",
    "StoresMatrix",
    "Verdict",
    "help_requests",
    "in_order",
    "no_fill",
    "no_note",
    "no_progress",
    "parse_applied",
    "refuse_impossible",
]
