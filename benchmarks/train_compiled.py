"""What compiling a step takes and saves: by blocks, as the loop does it, and as a whole, by turns.

One packed batch after the other is computed forward and backward in each way, in one process. The
norms of the gradients of a batch are compared: they may differ by rounding alone.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from train_common import in_turns, make_model, middle, ratio, timed
from train_others import CPU, batches_of

from truthgpt_services.training.compiled_loss import (
    compiled_as_a_whole,
    compiled_by_blocks,
    repeated_blocks,
)
from truthgpt_services.training.loss import summed_loss
from truthgpt_services.training.memory import retain_freed_memory
from truthgpt_services.training.precision import autocast, choose_precision

HEADING = """\
| a step | first | then | × uncompiled (middle half) | gradients differ by at most |
|---|---:|---:|---:|---:|"""


def table(model_name: str, rounds: int) -> Iterator[str]:
    """Yield lines of the table.

    Args:
        model_name: as for `train_others.like_table`.
        rounds: turns of each way.
    """
    # Nothing that was compiled before is found again.
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        yield from _rows(make_model(model_name), batches_of(model_name, packing=True), rounds)


def _rows(model: Any, batches: list[dict[str, torch.Tensor]], rounds: int) -> Iterator[str]:
    precision = choose_precision("auto", CPU)
    losses: dict[str, Callable[[Any], torch.Tensor]] = {
        "uncompiled": partial(summed_loss, model),
        "**compiled by blocks**": compiled_by_blocks(model, repeated_blocks(model)),
        "compiled as a whole": compiled_as_a_whole(model),
    }
    norms: dict[str, list[float]] = {name: [] for name in losses}

    def step(name: str) -> float:
        batch = batches[len(norms[name])]

        def compute() -> None:
            with autocast(precision, CPU):
                loss = losses[name](batch)
            loss.backward()

        took = timed(compute)
        norms[name].append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), torch.inf)))
        model.zero_grad(set_to_none=True)
        return took

    with retain_freed_memory(CPU):
        first = {name: step(name) for name in losses}
        found = in_turns({name: partial(step, name) for name in losses}, rounds)
    yield HEADING
    usual = found["uncompiled"]
    for name, seconds in found.items():
        pairs = zip(norms[name], norms["uncompiled"], strict=True)
        differ = max(abs(one / other - 1) for one, other in pairs)
        against = "| | |" if seconds is usual else f"| {ratio(seconds, usual)} | {differ:.1%} |"
        yield f"| {name} | {first[name]:.0f} s | {middle(seconds):.2f} s {against}"
