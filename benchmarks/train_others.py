"""Our loop beside transformers' Trainer and Lightning Fabric, in tokens that are no padding.

All ways train one and the same model in one process, taking turns, for a few steps each; the
time runs from when a batch is fetched to when one some steps later is, and where they fetch
ahead they all do. Like for like they get the same padded batches, optimizer (fused AdamW),
precision and norm that gradients are clipped to, and log nothing; in float32, and besides in
bfloat16 where the CPU has instructions for that.

Then each has its defaults for the same paragraphs of `pydoc_data.topics`, at most 256 tokens,
batch 8: Trainer pads each paragraph to the longest of its batch, in float32; ours packs, in
bfloat16 where the CPU has instructions for that, and compiled, as `auto` does once a run is
long enough. How long compiling took is printed beside; steps are timed after it.

A share of the matmul rate is that of one turn: what the model computes in it, over what products
of matrices alone come to in a second before the turn and one after it. What a shared machine gives
a process changes within seconds, and by more in bfloat16 than otherwise.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from statistics import fmean
from time import perf_counter
from typing import Any

import torch
from train_common import (
    ROWS,
    SIZES,
    SMOLLM2,
    WIDTH,
    in_turns,
    make_model,
    middle,
    ratio,
    spread,
    timed,
)

from truthgpt_core.plugin_system import PluginManager
from truthgpt_core.service_registry import ServiceContainer
from truthgpt_services import ModelService, TrainingService
from truthgpt_services.data import DataLoaderFactory
from truthgpt_services.training.batches import count_tokens
from truthgpt_services.training.compiling import has_compiler
from truthgpt_services.training.flops import count_flops, matmul_rate
from truthgpt_services.training.optimizers import fast_options, parameter_groups
from truthgpt_services.training.precision import TYPES, choose_precision

CPU = torch.device("cpu")
LIKE = """\
| like for like | in | real tokens/s | × ours (middle half) | reach |
|---|---|---:|---:|---:|"""
DEFAULTS = """\
| defaults | real tokens/s | × Trainer (middle half) | reach | of the matmul rate (same) | reach |
|---|---:|---:|---:|---:|---:|"""
MATMUL = 2048
MATMUL_SECONDS = 1.0
FABRIC: dict[str, Any] = {"float32": "32-true", "bfloat16": "bf16-mixed"}
"""What Fabric calls each precision."""


@dataclass
class Clock:
    """Hands out batches, and notes when each was fetched.

    Args:
        batches: all there are; after the last one the first comes again.
        steps: how many of them are timed, after one that is not.
    """

    batches: list[dict[str, torch.Tensor]]
    steps: int
    at: int = 0
    times: list[float] = field(default_factory=list)
    tokens: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stay where it is."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield as many batches as a turn takes; each way fetches one ahead."""
        self.times, self.tokens = [], 0
        for number in range(self.steps + 3):
            batch = self.batches[self.at % len(self.batches)]
            # Fetched when the first step begins, the second batch is what the second computes.
            if 1 <= number <= self.steps:
                self.tokens += count_tokens(batch)
            self.at += number <= self.steps
            self.times.append(perf_counter())
            yield batch

    def speed(self) -> float:
        """Return tokens per second of the steps after the first one."""
        return self.tokens / (self.times[self.steps + 2] - self.times[2])


def ours(model: Any, clock: Clock, **settings: Any) -> float:
    """Take a turn with our loop."""
    groups = parameter_groups(model, 0.0)
    options = fast_options(torch.optim.AdamW, {}, groups)
    optimizer = torch.optim.AdamW(groups, lr=1e-6, **options)
    with tempfile.TemporaryDirectory() as folder:
        service = TrainingService(PluginManager(ServiceContainer()))
        service.configure(
            config=settings,
            model=model,
            train_loader=clock,
            optimizer=optimizer,
            device="cpu",
            output_dir=folder,
        )
        # Not `run`, which saves at the end.
        service.train_epoch(model, clock, optimizer, None, None, 0)
        service.finish()
    return clock.speed()


def trainer(model: Any, clock: Clock, precision: str = "float32") -> float:
    """Take a turn with transformers' Trainer, as it is but for its logging and saving."""
    from transformers import Trainer, TrainingArguments

    class Fetched(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(clock)

    class ClockTrainer(Trainer):
        def get_train_dataloader(self) -> Any:
            loader = torch.utils.data.DataLoader(Fetched(), batch_size=None)
            return self.accelerator.prepare(loader)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=clock.steps + 2,
            per_device_train_batch_size=ROWS,
            learning_rate=1e-6,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=precision == "bfloat16",
        )
        # It prints a summary, whatever it is told about logging.
        with redirect_stdout(sys.stderr):
            ClockTrainer(model=model, args=arguments, train_dataset=Fetched()).train()
    return clock.speed()


def fabric(model: Any, clock: Clock, precision: str = "float32") -> float:
    """Take a turn with a loop of Lightning Fabric, as its documentation writes it."""
    from lightning_fabric import Fabric

    made = Fabric(accelerator="cpu", devices=1, precision=FABRIC[precision])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True, weight_decay=0.0)
    wrapped, optimizer = made.setup(model, optimizer)
    wrapped.train()
    ahead = iter(clock)
    batch = next(ahead)
    while batch is not None:
        following = next(ahead, None)
        loss = wrapped(**batch, use_cache=False).loss
        made.backward(loss)
        made.clip_gradients(wrapped, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        batch = following
    return clock.speed()


def batches_of(model_name: str, *, packing: bool) -> list[dict[str, torch.Tensor]]:
    """Return batches of the topics' paragraphs, in the order of a training run."""
    from pydoc_data.topics import topics

    tokenizer = ModelService().load_tokenizer(SMOLLM2 if model_name in SIZES else model_name)
    texts = [part for _, text in sorted(topics.items()) for part in text.split("\n\n") if part]
    loader = DataLoaderFactory.create_train_loader(
        texts, tokenizer, WIDTH, ROWS, packing=packing, length_bucketing=False, drop_last=True
    )
    batches = list(loader)
    if model_name in SIZES:
        # Its vocabulary is smaller than the tokenizer's; what it learns does not matter.
        for batch in batches:
            learned = batch["labels"] >= 0
            batch["input_ids"] %= SIZES[model_name][0]
            batch["labels"] = torch.where(learned, batch["input_ids"], -100)
    return batches


def like_table(model_name: str, rounds: int, steps: int) -> Iterator[str]:
    """Yield lines of the table of what is alike.

    Args:
        model_name: `small`, `mini`, `tiny`, or any that we load, with a tokenizer.
        rounds: turns of each way.
        steps: that are timed in each turn.
    """
    model = make_model(model_name)
    padded = batches_of(model_name, packing=False)
    yield LIKE
    # Each by itself: in bfloat16 too, where ours takes it.
    for precision in dict.fromkeys(("float32", choose_precision("auto", CPU))):
        ways: dict[str, Callable[[], float]] = {
            "**truthgpt**": partial(
                ours, model, Clock(padded, steps), precision=precision, compile=False
            )
        }
        if find_spec("accelerate"):
            ways["Trainer"] = partial(trainer, model, Clock(padded, steps), precision)
        if find_spec("lightning_fabric"):
            ways["Lightning Fabric"] = partial(fabric, model, Clock(padded, steps), precision)
        found = in_turns(ways, rounds)
        first = found["**truthgpt**"]
        for name, speeds in found.items():
            against = "| | |" if speeds is first else f"| {ratio(speeds, first)} | ≤ 1 |"
            yield f"| {name} | {precision} | {middle(speeds):.1f} {against}"


def defaults_table(model_name: str, rounds: int, steps: int, *, compiled: bool) -> Iterator[str]:
    """Yield lines of the table of defaults.

    Args:
        model_name: as for `like_table`.
        rounds: as for `like_table`.
        steps: as for `like_table`.
        compiled: whether to time ours compiled, too.
    """
    model = make_model(model_name)
    padded, packed = (batches_of(model_name, packing=packing) for packing in (False, True))
    precision = choose_precision("auto", CPU)
    dtype = TYPES.get(precision, torch.float32)
    ways: dict[str, Callable[[], float]] = {}
    shares: dict[str, list[float]] = {}
    rates: list[float] = []

    def rate() -> float:
        return matmul_rate(CPU, dtype, size=MATMUL, seconds=MATMUL_SECONDS)

    def add(name: str, batches: list[dict[str, torch.Tensor]], way: Callable[..., float]) -> None:
        flops, noted = _flops_of_a_token(model, batches), shares.setdefault(name, [])
        work = partial(way, model, Clock(batches, steps))

        def turn() -> float:
            before, speed, after = rate(), work(), rate()
            rates.extend((before, after))
            noted.append(speed * flops / fmean((before, after)))
            return speed

        ways[name] = turn

    if find_spec("accelerate"):
        add("Trainer, padded, float32", padded, trainer)
    name = f"**truthgpt**, packed, {precision}"
    add(name, packed, partial(ours, compile=False))
    if compiled and has_compiler(CPU):
        took = timed(partial(ours, model, Clock(packed, 1), compile=True))
        add(f"{name}, compiled in {took:.0f} s", packed, partial(ours, compile=True))
    found = in_turns(ways, rounds)
    yield DEFAULTS
    reference = next(iter(found.values()))
    for name, speeds in found.items():
        against = "" if speeds is reference else ratio(speeds, reference)
        own = "truthgpt" in name
        yield (
            f"| {name} | {middle(speeds):.1f} | {against} | {'≥ 4' if own else ''} "
            f"| {spread(shares[name], '.0%')} | {'≥ 40 % with AMX' if own else ''} |"
        )
    yield ""
    yield (
        f"Products of matrices of {MATMUL} × {MATMUL} in {precision}: "
        f"{spread([each / 1e9 for each in rates], '.0f')} GFLOP/s."
    )


def _flops_of_a_token(model: Any, batches: list[dict[str, torch.Tensor]]) -> float:
    flops = count_flops(model)
    assert flops is not None
    return sum(map(flops.of, batches)) / sum(map(count_tokens, batches))
