"""What keeping freed memory saves: the same packed step, with and without, by turns.

Of each turn the last step is timed; in those before it memory comes to what a step needs.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from train_common import in_turns, make_model, middle, ratio, timed
from train_others import CPU, batches_of

from truthgpt_services.training.loss import summed_loss
from truthgpt_services.training.memory import retain_freed_memory

HEADING = """\
| memory that a step frees | a step | × given back (middle half) | new pages in it |
|---|---:|---:|---:|"""
STEPS = 3


def table(model_name: str, rounds: int) -> Iterator[str]:
    """Yield lines of the table.

    Args:
        model_name: as for `train_others.like_table`.
        rounds: turns of each way.
    """
    model = make_model(model_name)
    batch = batches_of(model_name, packing=True)[0]
    contexts: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "given back": nullcontext,
        "**kept**": partial(retain_freed_memory, CPU),
    }
    pages: dict[str, list[int]] = {name: [] for name in contexts}

    def step() -> None:
        summed_loss(model, batch).backward()
        model.zero_grad(set_to_none=True)

    def turn(name: str) -> float:
        with contexts[name]():
            for _ in range(STEPS - 1):
                step()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            took = timed(step)
            pages[name].append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        return took

    found = in_turns({name: partial(turn, name) for name in contexts}, rounds)
    yield HEADING
    for name, seconds in found.items():
        against = "" if name == "given back" else ratio(seconds, found["given back"])
        yield f"| {name} | {middle(seconds):.2f} s | {against} | {middle(pages[name]):,.0f} |"
