"""Our loop against the same steps in plain PyTorch: what the loop itself costs.

Both train the same model from the same weights on the same packed batches, in one process,
taking turns step by step: each waits for the other at the end of its step, so what disturbs
one disturbs the other. Nothing is evaluated and nothing saved in a timed step, nothing listens,
and at the end all weights have to be the same in every bit. The small model is there because a
cost that is the same for each step is seen beside short steps alone.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from train_common import Batches, make_model, middle, ratio

from truthgpt_core.plugin_system import PluginManager
from truthgpt_core.service_registry import ServiceContainer
from truthgpt_services import TrainingService
from truthgpt_services.training.optimizers import fast_options, parameter_groups

HEADING = """\
| weights | batch | plain, a step | ours | × plain (middle half) | longer by | reach | trained |
|---|---|---:|---:|---:|---:|---:|---|"""
UNCOUNTED = 2


class Turns:
    """Lets two threads take a step each in turn, and times the steps."""

    def __init__(self) -> None:
        self._free = {"ours": threading.Semaphore(1), "plain": threading.Semaphore(0)}
        self.seconds: dict[str, list[float]] = {"ours": [], "plain": []}
        self._began: dict[str, float] = {}

    def take(self, name: str) -> None:
        """Wait for the turn, and begin to time."""
        self._free[name].acquire()
        self._began[name] = perf_counter()

    def leave(self, name: str) -> None:
        """Stop timing, and let the other take its turn."""
        self.seconds[name].append(perf_counter() - self._began.pop(name))
        self._free["plain" if name == "ours" else "ours"].release()


class InTurn:
    """A loader that lets go of the turn where one step ends and the next begins."""

    def __init__(self, batches: Batches, turns: Turns) -> None:
        self._batches, self._turns = batches, turns

    def __len__(self) -> int:
        """How many batches there are."""
        return len(self._batches)

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        return self._batches.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""
        self._batches.load_state_dict(state)

    def __iter__(self) -> Any:
        """Yield batches; the loop takes one ahead, so a step begins with the second one."""
        for number, batch in enumerate(self._batches):
            if number > 1:
                self._turns.leave("ours")
            if number > 0:
                self._turns.take("ours")
            yield batch
        self._turns.leave("ours")


def plain(model: Any, optimizer: Any, batches: Batches, turns: Turns) -> None:
    """Train as one writes it without a library; with the loss of the same sum and division."""
    model.train()
    # In this order: the norm of all is summed in it.
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    ahead = iter(batches)
    batch = next(ahead, None)
    for number in range(len(batches)):
        if number < len(batches) - 1:
            turns.take("plain")
        following = next(ahead, None)
        targets = int((batch["labels"][:, 1:] != -100).sum())
        inputs = {name: each for name, each in batch.items() if name != "labels"}
        logits = model(**inputs, use_cache=False).logits
        labels = functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
        loss = functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
        )
        (loss / targets).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(loss.detach())
        if number < len(batches) - 1:
            turns.leave("plain")
        batch = following


def row(name: str, steps: int, rows: int, width: int) -> str:
    """Return a row of the table for one model.

    Raises:
        SystemExit: the two have trained different weights.
    """
    turns, models = Turns(), {way: make_model(name) for way in ("ours", "plain")}
    vocabulary = models["ours"].config.vocab_size
    # The step before the last shares its time with the checkpoint that ends our run.
    count = UNCOUNTED + steps + 2
    optimizers = {way: _optimizer(model) for way, model in models.items()}

    def attempt(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it ends the process
            # The other would wait for its turn for ever.
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)

    with tempfile.TemporaryDirectory() as folder:
        service = TrainingService(PluginManager(ServiceContainer()))
        service.configure(
            config={"precision": "float32", "compile": False},
            model=models["ours"],
            train_loader=InTurn(Batches(count, rows, width, vocabulary), turns),
            optimizer=optimizers["ours"],
            device="cpu",
            output_dir=folder,
        )
        batches = Batches(count, rows, width, vocabulary)
        twin = partial(plain, models["plain"], optimizers["plain"], batches, turns)
        # Both in threads: memory of the main thread is allocated in another way.
        threads = [threading.Thread(target=attempt, args=(work,)) for work in (service.run, twin)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    same = all(
        torch.equal(one, other)
        for one, other in zip(
            models["ours"].parameters(), models["plain"].parameters(), strict=True
        )
    )
    if not same:
        raise SystemExit(f"{name}: our loop and plain PyTorch trained different weights")
    ours, bare = (turns.seconds[way][UNCOUNTED:-1] for way in ("ours", "plain"))
    longer = middle([one - other for one, other in zip(ours, bare, strict=True)])
    size = sum(each.numel() for each in models["ours"].parameters())
    return (
        f"| {size / 1e6:.1f} M | {rows} × {width} | {middle(bare) * 1e3:.1f} ms "
        f"| {middle(ours) * 1e3:.1f} ms | {ratio(ours, bare)} | {longer * 1e3:.2f} ms | ≤ 1.01 "
        "| the same bits |"
    )


def _optimizer(model: Any) -> torch.optim.Optimizer:
    groups = parameter_groups(model, 0.0)
    options = fast_options(torch.optim.AdamW, {}, groups)
    return torch.optim.AdamW(groups, lr=1e-4, **options)
