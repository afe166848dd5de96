"""Training from much text: how long until the first step, and what stays in memory.

The first step: a process of its own runs `truthgpt train`, from a file of JSON Lines
that is as `benchmarks/data.py` makes it, with a tokenizer of SmolLM2 and a Llama of few weights,
so that what is timed is not the step. The clock starts before anything is imported.

Memory: token stores of several sizes are made of random tokens, as tokenizing would leave them
on the disk, and a process for each trains some steps on batches from all over them. What it
holds itself is counted, without the pages of mapped files, which the system takes back at need.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from statistics import median
from typing import Any

AGAIN = 5
START_HEADING = """\
| start | first step | reach |
|---|---:|---:|"""
MEMORY_HEADING = """\
| tokens on the disk | data as text, about | rows | held by the process | reach |
|---|---:|---:|---:|---:|"""
LENGTH, BATCH, STEPS = 1024, 4, 8
# A small batch: what is timed is what comes before it.
START_LENGTH, START_BATCH = 256, 2


def start_table(megabytes: int, model: str) -> Iterator[str]:
    """Yield lines of the table of starts."""
    from data import paragraphs

    from truthgpt_services import ModelService

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ModelService().export(model, folder / "model")
        with (folder / "texts.jsonl").open("w", encoding="utf-8") as lines:
            for text in paragraphs(megabytes * 1_000_000):
                lines.write(json.dumps({"text": text}) + "\n")
        # A file that just changed may change again without a trace.
        time.sleep(3)
        yield START_HEADING
        first = _child("start", name, cache=folder / "cache")["first"]
        yield f"| first | {first:.1f} s | |"
        taken: dict[str, list[float]] = {"start": [], "floor": []}
        for _ in range(AGAIN):
            for what, seconds in taken.items():
                seconds.append(_child(what, name, cache=folder / "cache")["first"])
        yield f"| second | {_spread(taken['start'])} | ≤ 5 s |"
        yield f"| importing torch and transformers' Llama, no more | {_spread(taken['floor'])} | |"


def start(name: str, began: float) -> dict[str, float]:
    """Run `truthgpt train` for a step; return the seconds from when the process began."""
    from truthgpt_core.cli.main import main
    from truthgpt_core.event_system import Event, EventType, on_event

    folder, stepped = Path(name), list[float]()

    def step(_: Event) -> None:
        stepped.append(time.time() - began)

    config = {
        "model": {"name_or_path": str(folder / "model")},
        "architecture": {"hidden_size": 64, "layers": 2, "heads": 2},
        "data": {
            "source": "jsonl",
            "dataset": str(folder / "texts.jsonl"),
            "max_seq_len": START_LENGTH,
        },
        "training": {
            "max_steps": 1,
            "eval_interval": 1000,
            "train_batch_size": START_BATCH,
        },
        "output_dir": str(folder / f"out-{os.getpid()}"),
    }
    (folder / "train.json").write_text(json.dumps(config))
    sys.argv = ["truthgpt", "train", str(folder / "train.json")]
    with on_event(EventType.TRAINING_STEP, step), redirect_stdout(sys.stderr), suppress(SystemExit):
        main()
    return {"first": stepped[0]}


def floor(began: float) -> dict[str, float]:
    """Import what no training of a Llama goes without; return the seconds it took."""
    import torch  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401

    return {"first": time.time() - began}


def memory_table(sizes: list[int]) -> Iterator[str]:
    """Yield lines of the table of memory.

    Args:
        sizes: of the stores, in megabytes.
    """
    yield MEMORY_HEADING
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            _child("make", name, str(size))
            found = _child("memory", name)
        yield (
            f"| {size} MB | {size * 2 / 1e3:.1f} GB | {found['rows']} "
            f"| {found['own'] / 1e6:.0f} MB | constant |"
        )


def make(name: str, megabytes: int) -> dict[str, Any]:
    """Write a store of random tokens, of 2 bytes each, in documents of 300."""
    import numpy as np

    from truthgpt_services.data.token_arrays import write_arrays

    many, chance = 300, np.random.default_rng(0)

    def fill(sink: Any) -> tuple[str, dict[str, Any]]:
        for _ in range(megabytes):
            documents = 1_000_000 // (2 * many)
            sink.append("ids", chance.integers(0, 512, documents * many, dtype=np.uint16))
            sink.append("lengths", np.full(documents, many, np.int64))
        return "store", {"key": "store"}

    write_arrays(Path(name), fill)
    return {}


def hold(name: str) -> dict[str, Any]:
    """Train some steps on a store; return what the process holds at the end."""
    import torch
    from train_common import make_model, resident

    from truthgpt_services import TrainingService
    from truthgpt_services.data.batch_sampler import Order
    from truthgpt_services.data.loader import BatchLoader
    from truthgpt_services.data.packing import plan_rows
    from truthgpt_services.data.token_arrays import read_arrays
    from truthgpt_services.data.token_store import TokenStore

    arrays = read_arrays(Path(name) / "store")
    assert arrays is not None
    store = TokenStore(arrays, "store")
    rows = plan_rows(store, width=LENGTH, packing=True)
    order = Order(rows, BATCH, True, False, False, 0)
    loader = BatchLoader(store, rows, order, padding=0, num_workers=0, prefetch=2, resumes=True)
    model = make_model("tiny")
    service = TrainingService()
    service.configure(
        config={"max_steps": STEPS, "precision": "float32"},
        model=model,
        train_loader=loader,
        optimizer=torch.optim.AdamW(model.parameters()),
        device="cpu",
        output_dir=Path(name) / "out",
    )
    service.run()
    return {"own": resident()[1], "rows": len(rows)}


def _spread(seconds: list[float]) -> str:
    return f"{median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})"


def _child(what: str, *arguments: str, cache: Path | None = None) -> dict[str, Any]:
    environment = dict(os.environ)
    if cache is not None:
        environment["TRUTHGPT_CACHE"] = str(cache)
    command = [sys.executable, __file__, what, str(time.time()), *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _work(what: str, began: str, *arguments: str) -> dict[str, Any]:
    if what == "start":
        return start(arguments[0], float(began))
    if what == "floor":
        return floor(float(began))
    if what == "make":
        return make(arguments[0], int(arguments[1]))
    return hold(arguments[0])


if __name__ == "__main__":
    print(json.dumps(_work(*sys.argv[1:])))
