"""Small optimizations, each with one thing that can become of it.

Tests in one process register them by hand; worker processes find them as the
distribution that the fixture `example_distribution` lays out on disk.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
from torch import nn

from truthgpt_core.event_system import OptimizationNoted, emit_event
from truthgpt_core.optimization import (
    Applied,
    Coverage,
    Optimization,
    OptimizationContext,
    OptimizationError,
    Options,
    Stage,
    Verdict,
)


class HalfLinear(nn.Linear):
    """A linear layer whose weights are kept in bfloat16, computed in the dtype of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._note("Halves are about to be multiplied.")
        product = nn.functional.linear(x, self.weight.to(x.dtype))
        self._note("Halves were multiplied.")
        return product

    def _note(self, note: str) -> None:
        emit_event(OptimizationNoted(optimization="halve", about="multiplying", note=note))


def halved(model: Any, make: Any) -> Coverage:
    covered, skipped = [], []
    for name, layer in list(model.named_modules()):
        if type(layer) is not nn.Linear:
            continue
        if name == "lm_head":
            skipped.append((name, "it makes the logits"))
            continue
        model.set_submodule(name, make(layer))
        covered.append(name)
    return Coverage("linear layers", tuple(covered), tuple(skipped))


def empty_half(layer: nn.Linear) -> HalfLinear:
    shape = (layer.in_features, layer.out_features)
    return HalfLinear(*shape, bias=False, dtype=torch.bfloat16, device=layer.weight.device)


def filled_half(layer: nn.Linear) -> HalfLinear:
    half = empty_half(layer)
    half.weight.data.copy_(layer.weight.data)
    return half


class HalveOptions(Options):
    """How to halve."""

    note: str = "auto"


class Halve(Optimization[HalveOptions]):
    """Pays: half the bytes, the same predictions."""

    name = "halve"
    options_type = HalveOptions

    def apply(self, model: Any, context: OptimizationContext) -> Applied:
        coverage = halved(model, filled_half)
        context.progress("Halving", len(coverage.covered), len(coverage.covered))
        chosen = "chosen here" if self.options.note == "auto" else self.options.note
        note = f"Halves are whole enough, with seed {context.seed}."
        return Applied(model, coverage, {"note": chosen}, (note,))

    def restore(self, model: Any, context: OptimizationContext) -> Any:
        halved(model, empty_half)
        return model

    def plain_weights(self, name: str, module: Any) -> dict[str, Any] | None:
        return {"weight": module.weight} if isinstance(module, HalfLinear) else None


class Idle(Optimization[Options]):
    """Does not pay: changes nothing."""

    name = "idle"
    stage = Stage.EXECUTION

    def apply(self, model: Any, context: OptimizationContext) -> Applied:
        return Applied(model)


class Ruin(Optimization[Options]):
    """Costs quality: the likeliest token becomes the least likely."""

    name = "ruin"
    ordinary = True

    def apply(self, model: Any, context: OptimizationContext) -> Applied:
        model.lm_head.weight.data.neg_()
        return Applied(model)

    def restore(self, model: Any, context: OptimizationContext) -> Any:
        return model


class Refuse(Optimization[Options]):
    """Cannot work on this machine, whichever it is."""

    name = "refuse"

    def check(self, device: str) -> Verdict:
        return Verdict.no(f"no {device} is ever good enough", "Buy another")

    def apply(self, model: Any, context: OptimizationContext) -> Applied:
        raise AssertionError("its check said no")


class PickyError(OptimizationError):
    """A plugin's own kind of error."""


class Picky(Optimization[Options]):
    """Does not like the model."""

    name = "picky"

    def apply(self, model: Any, context: OptimizationContext) -> Applied:
        raise PickyError("This model has no knobs", hint="Take one with knobs.")


class Die(Optimization[Options]):
    """Takes its process with it, as the kernel does when memory runs out."""

    name = "die"

    def apply(self, model: Any, context: OptimizationContext) -> Applied:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("dead already")


class Forget(Halve):
    """Saves what it cannot load: its author forgot to restore."""

    name = "forget"

    def apply(self, model: Any, context: OptimizationContext) -> Applied:
        model.register_buffer("forgotten", torch.ones(3))
        return Applied(model)

    def restore(self, model: Any, context: OptimizationContext) -> Any:
        return model


ALL = (Halve, Idle, Ruin, Refuse, Picky, Die, Forget)
