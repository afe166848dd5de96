"""What saving in the background holds up: the steps in which a checkpoint is begun and written.

The stall is how long the loop waits for a checkpoint that it begins: for the copy of all tensors,
from the end of a step's work to the fetch of the next batch. It is timed by itself, and told as a
share of the median step. Beside it is what such steps last as a whole beyond the median of those
while nothing is being saved; a step lasts from when one batch is fetched to when the next is.
While a checkpoint is then written, steps go on, and share the machine with it: the next figure is
the sum of what all steps of a checkpoint last beyond the median, until it is complete. The last
row has what steps in which nothing is saved last beyond their median, which is the machine's own
unrest.

The model is small so that there are many checkpoints in little time. What is saved and what is
computed both grow with the number of weights, so the proportion is that of larger models; what
is the same for each checkpoint, such as flushing files, weighs more.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from statistics import quantiles
from time import perf_counter
from typing import Any

import torch
from train_common import Batches, make_model, middle

from truthgpt_core.event_system import Event, EventType, get_event_emitter, on_event
from truthgpt_core.plugin_system import PluginManager
from truthgpt_core.service_registry import ServiceContainer
from truthgpt_services import TrainingService
from truthgpt_services.training.optimizers import fast_options, parameter_groups

HEADING = """\
| in shares of the median step | median | 99 % are below | reach |
|---|---:|---:|---:|"""
UNCOUNTED = 2


class Noting(Batches):
    """Batches, with the time at which each was fetched."""

    times: list[float]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield those that are left."""
        self.times = []
        for batch in super().__iter__():
            self.times.append(perf_counter())
            yield batch


def table(name: str, checkpoints: int, every: int, rows: int, width: int) -> Iterator[str]:
    """Yield lines of the table.

    Args:
        name: of the model; see `train_common.make_model`.
        checkpoints: how many are counted.
        every: steps from one to the next.
        rows: of a batch.
        width: of a row.
    """
    model = make_model(name)
    steps = (checkpoints + UNCOUNTED) * every
    batches = Noting(steps + 2, rows, width, model.config.vocab_size)
    groups = parameter_groups(model, 0.0)
    options = fast_options(torch.optim.AdamW, {}, groups)
    optimizer = torch.optim.AdamW(groups, lr=1e-4, **options)
    complete: dict[int, int] = {}
    worked: dict[int, float] = {}

    def stepped(event: Event) -> None:
        worked[event.data["step"]] = perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        service = TrainingService(PluginManager(ServiceContainer(), events=get_event_emitter()))

        def saved(event: Event) -> None:
            complete[event.data["step"]] = service.progress.step

        service.configure(
            config={"precision": "float32", "compile": False, "save_steps": every},
            model=model,
            train_loader=batches,
            optimizer=optimizer,
            device="cpu",
            output_dir=folder,
        )
        with (
            on_event(EventType.CHECKPOINT_SAVED, saved),
            on_event(EventType.TRAINING_STEP, stepped),
        ):
            service.run()
    # Step 1 runs between the second fetch and the third.
    times = batches.times
    lasted = {step: times[step + 1] - times[step] for step in range(1, len(times) - 1)}
    waited = {step: times[step + 1] - worked[step] for step in lasted}
    size = sum(each.numel() for each in model.parameters())
    yield from _rows(lasted, waited, complete, every, size)


def _rows(
    lasted: dict[int, float],
    waited: dict[int, float],
    complete: dict[int, int],
    every: int,
    size: int,
) -> Iterator[str]:
    begun = [step for step in complete if step > UNCOUNTED * every and step in lasted]
    under_way = {
        step for first, last in complete.items() for step in range(first, max(first, last) + 1)
    }
    others = [seconds for step, seconds in lasted.items() if step > every and step not in under_way]
    if len(others) < 2 or len(begun) < 2:
        raise SystemExit("A checkpoint is complete only when the next begins: give more --every")
    usual = middle(others)
    waiting = [waited[step] / usual for step in begun]
    beginning = [lasted[step] / usual - 1 for step in begun]
    whole = [
        sum(lasted.get(step, usual) / usual - 1 for step in range(first, complete[first] + 1))
        for first in begun
    ]
    unrest = [seconds / usual - 1 for seconds in others]
    yield HEADING
    yield _row(f"the loop waits for one of {len(begun)} checkpoints", waiting, "≤ 5 %")
    yield _row("the step in which it is begun, beyond the median", beginning, "")
    yield _row("all steps until it is complete, together, beyond the median", whole, "")
    yield _row(f"{len(others)} steps in which nothing is saved, beyond the median", unrest, "")
    yield ""
    yield (
        f"{size / 1e6:.1f} M weights, {12 * size / 1e6:.0f} MB in a checkpoint; the median step "
        f"takes {usual * 1e3:.0f} ms, a checkpoint {middle([complete[b] - b for b in begun]):.0f} "
        f"steps more until it is complete, one is begun every {every}."
    )


def _row(what: str, shares: list[float], reach: Any) -> str:
    most = quantiles(shares, n=100, method="inclusive")[98]
    return f"| {what} | {middle(shares):.1%} | {most:.1%} | {reach} |"
