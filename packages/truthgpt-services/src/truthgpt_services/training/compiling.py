"""Compiling the step of training, where that repays itself.

Nothing here depends on how long something took, so that the same run is compiled each time;
and a checkpoint says whether its run was, so that one that resumes is the same bit for bit.
Code is made for the shape that batches have, once; a smaller last batch of an epoch runs
uncompiled, and makes no code of its own.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import torch

from truthgpt_core.errors import in_one_line
from truthgpt_services.training.compiled_loss import (
    Tensors,
    compiled_as_a_whole,
    compiled_by_blocks,
    repeated_blocks,
)
from truthgpt_services.training.errors import TrainingError
from truthgpt_services.training.flops import count_flops
from truthgpt_services.training.loss import summed_loss
from truthgpt_services.training.rng import preserved_random_state
from truthgpt_services.training.state import Compiled

if TYPE_CHECKING:
    from truthgpt_services.training.run import Run

BREAK_EVEN_FLOPS: Mapping[str, float] = {"cpu": 6e13, "cuda": 3e16}
"""For each type of device, how many operations a run needs before compiling saves time.

It is the time that compiling takes, some half a minute, times the operations that the device does
in a second, over the part of the time that compiled code saves: with 3e11 of them and a fifth on
two cores with AMX, 5e13; with 1e11 and a twelfth on two without, 4e13; on a GPU, with an estimate
of 2e14 and a quarter, 2e16.
"""

Way = Literal["blocks", "whole"]

_way: ContextVar[Way | None] = ContextVar("truthgpt_compiled_way", default=None)
"""In which way the step that a hook is asked for is to be compiled; None for not at all."""


class BatchLoss:
    """Computes the loss of a batch, compiled or not: what the loop calls.

    Which of the two is decided with the first batch. That batch is then computed once more,
    forward and backward, to see that compiling succeeds before anything depends on it.

    Args:
        run: with settings and hooks; its state keeps the decision.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._loss_of: Callable[[Tensors], Any] | None = None
        self._way: Way = "whole"
        self._tried = False

    def __call__(self, batch: Tensors) -> torch.Tensor:
        """Return the sum of the losses of all tokens that have a label.

        Args:
            batch: on its device.

        Raises:
            TrainingError: it shall be compiled by all means, and cannot be.
        """
        run = self._run
        if self._loss_of is None:
            run.state.compiled = decide(run, batch)
            # One code for all widths of batches is made of the whole.
            self._way = "whole" if run.state.compiled == "padded" else "blocks"
            self._loss_of = self._make()
        compiled = run.state.compiled
        if not compiled:
            return self._loss_of(batch)  # type: ignore[no-any-return]  # of a hook
        if not _is_for(compiled, batch):
            with torch.compiler.set_stance("force_eager"):
                return self._loss_of(batch)  # type: ignore[no-any-return]  # of a hook
        if not self._tried:
            self._try(batch)
        return self._loss_of(batch)  # type: ignore[no-any-return]  # of a hook

    def _make(self) -> Callable[[Tensors], Any]:
        token = _way.set(self._way if self._run.state.compiled else None)
        try:
            made = self._run.hooks.make_training_step(model=self._run.prepared)
        finally:
            _way.reset(token)
        assert made is not None, "the services' own implementation returns something"
        return made

    def _try(self, batch: Tensors) -> None:
        run = self._run
        self._tried = True
        run.note("compile", "Compiling the step, once for the run: it takes a minute or so")
        error = self._attempt(batch)
        if error is not None and self._way == "blocks":
            # What one block is compiled to may not do for the others.
            self._way = "whole"
            self._loss_of = self._make()
            error = self._attempt(batch)
        if error is None:
            return
        if run.settings.compile is True:
            raise TrainingError(
                f"The training step cannot be compiled: {in_one_line(error)}",
                hint="Set training.compiling to false; `truthgpt doctor` says what is missing.",
            ) from error
        run.state.compiled = False
        self._loss_of = self._make()
        run.note("compile", f"It goes on uncompiled: compiling failed: {in_one_line(error)}")

    def _attempt(self, batch: Tensors) -> Exception | None:
        """Compute a batch forward and backward, and leave gradients as they are."""
        # Imported here: it takes a second.
        from torch._dynamo import config

        assert self._loss_of is not None
        parameters = list(self._run.state.model.parameters())
        gradients = [each.grad for each in parameters]
        for each in parameters:
            each.grad = None
        # Else torch goes on uncompiled where blocks differ too often.
        strict = config.patch(fail_on_recompile_limit_hit=True)
        try:
            with preserved_random_state(), strict, warnings.catch_warnings():
                # What torch looks at while it compiles is no concern of the user's.
                warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor")
                self._loss_of(batch).backward()
        except Exception as error:  # noqa: BLE001 - it is told, or another way tried
            return error
        finally:
            for each, gradient in zip(parameters, gradients, strict=True):
                each.grad = gradient
        return None


def decide(run: Run, batch: Tensors) -> Compiled:
    """Return what the steps of a run are compiled for: a shape, "padded", or False.

    Args:
        run: whose settings are asked first, then the checkpoint that it resumes from.
        batch: one of the run.
    """
    requested, resumed = run.settings.compile, run.state.compiled
    if requested is False:
        return False
    if resumed or (resumed is False and requested == "auto"):
        return resumed
    padded = "attention_mask" in batch
    if requested is True:
        return "padded" if padded else tuple(batch["input_ids"].shape)
    flops = count_flops(run.state.model)
    least = BREAK_EVEN_FLOPS.get(run.device.type)
    if padded or flops is None or least is None or run.total_steps is None:
        return False
    if run.backend.processes > 1 or not has_compiler(run.device):
        return False
    batches = run.total_steps * run.settings.gradient_accumulation_steps
    if batches * batch["input_ids"].numel() * flops.per_token < least:
        return False
    return tuple(batch["input_ids"].shape)


def has_compiler(device: torch.device) -> bool:
    """Return whether there is what torch.compile needs to make code for a device."""
    if device.type == "cuda":
        return find_spec("triton") is not None
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    return shutil.which(os.environ.get("CXX") or default) is not None


def own_step(model: Any) -> Callable[[Tensors], torch.Tensor]:
    """Return what computes the loss of a batch, compiled if it is made for a run that is.

    What plugins put around it, or in its place, is left as it is.

    Args:
        model: a causal language model of transformers.
    """
    way = _way.get()
    if way is None:
        return partial(summed_loss, model)
    blocks = repeated_blocks(model) if way == "blocks" else []
    # This compiles nothing yet; calling it does.
    return compiled_by_blocks(model, blocks) if blocks else compiled_as_a_whole(model)


def _is_for(compiled: Compiled, batch: Tensors) -> bool:
    shape = tuple(batch["input_ids"].shape)
    # Code for any shape is none for a size of 1, for which torch would make another.
    return min(shape) > 1 if compiled == "padded" else shape == compiled
