"""Runs of training that are killed at random moments, again and again, until one comes to its end.

    python benchmarks/train_kills.py --kills 200

A process that has imported everything forks children, each of which goes on with the run from
its newest checkpoint, saves after every step, and gets SIGKILL at a random moment: while it
looks for a checkpoint, trains, or writes one. After each kill every checkpoint is read with
all its checksums; one under its final name that is not whole counts as damaged. In the end
the run is let alone, and compared in every bit with one that was not killed: weights,
optimizer, schedule, random numbers and position in the data.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from train_common import Batches, describe, make_model

from truthgpt_core.plugin_system import PluginManager
from truthgpt_core.service_registry import ServiceContainer
from truthgpt_services import TrainingService
from truthgpt_services.training import state_dict_io
from truthgpt_services.training.checkpoint_files import read_checkpoint
from truthgpt_services.training.checkpoints import CheckpointStore
from truthgpt_services.training.errors import CheckpointError
from truthgpt_services.training.rng import seed_all

HEADING = """\
| kills | runs that went on from a checkpoint | checkpoints read | damaged | in the end |
|---:|---:|---:|---:|---|"""
STEPS = 100_000


def main() -> None:
    """Kill, count and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--longest", type=float, default=0.5, help="seconds until a kill, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # What a first run imports, the children need not.
        train(folder / "warming", 1)
        counts = kill(folder / "killed", given.kills, given.longest, random.Random(given.seed))
        last = int(CheckpointStore(folder / "killed" / "checkpoints").all()[0].name[5:])
        killed = train(folder / "killed", last + 3)
        alone = train(folder / "alone", last + 3)
    same = "the same bits" if _equal(killed, alone) else "ANOTHER STATE"
    print(f"{describe()}\n\n{HEADING}")
    kills, resumed, read, damaged = counts
    print(f"| {kills} | {resumed} | {read} | {damaged} | step {last + 3}: {same} |")
    if damaged or same != "the same bits":
        raise SystemExit(1)


def train(out: Path, steps: int) -> dict[str, Any]:
    """Train up to a step, from wherever the newest checkpoint is; return all that resumes."""
    seed_all(0)
    model = make_model("tiny")
    # So that random numbers matter.
    model.config.attention_dropout = 0.1
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    service = TrainingService(PluginManager(ServiceContainer()))
    service.configure(
        config={"precision": "float32", "max_steps": steps, "save_steps": 1, "epochs": STEPS},
        model=model,
        train_loader=Batches(7, 2, 32, model.config.vocab_size),
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
        device="cpu",
        output_dir=out,
    )
    service.resume()
    service.run()
    newest = CheckpointStore(out / "checkpoints").newest().path
    assert newest is not None
    contents = read_checkpoint(newest)
    return {
        "weights": contents.model,
        "training": contents.training,
        "state": state_dict_io.encode(contents.state, {}, ""),
    }


def kill(out: Path, kills: int, longest: float, chance: random.Random) -> tuple[int, ...]:
    """Kill runs; return how many, how many had something to go on from, were read, damaged."""
    resumed = read = damaged = 0
    store = CheckpointStore(out / "checkpoints")
    for _ in range(kills):
        resumed += bool(store.all())
        child = os.fork()
        if child == 0:
            train(out, STEPS)
            os._exit(0)
        time.sleep(chance.uniform(0.0, longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit("A run ended before it was killed: see above")
        for path in store.all():
            read += 1
            try:
                read_checkpoint(path)
            except CheckpointError as error:
                damaged += 1
                print(error, file=sys.stderr)
    return kills, resumed, read, damaged


def _equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    for kind in ("weights", "training"):
        if one[kind].keys() != other[kind].keys():
            return False
        if not all(torch.equal(each, other[kind][name]) for name, each in one[kind].items()):
            return False
    return bool(one["state"] == other["state"])


if __name__ == "__main__":
    main()
