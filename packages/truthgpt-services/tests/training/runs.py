"""Runs of training in processes of their own, forked from one that has imported torch.

As a script it reads a list of jobs as JSON from standard input, does each one in a fork, and
writes what they returned, as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from truthgpt_core.event_system import EventType, get_event_emitter, on_event
from truthgpt_core.hookspecs import hookimpl
from truthgpt_core.plugin_system import PluginManager
from truthgpt_core.service_registry import ServiceContainer
from truthgpt_services import TrainingService
from truthgpt_services.training import state_dict_io
from truthgpt_services.training.checkpoints import CheckpointStore
from truthgpt_services.training.errors import TrainingInterrupted
from truthgpt_services.training.rng import seed_all

VOCABULARY = 64
# Beside this file, where a script finds its modules.
COMMAND_RUNS = "command_runs"


class ToyLoader:
    """Padded batches of random tokens, in an order of each epoch's own; its position resumes."""

    def __init__(self, batches: int = 8, rows: int = 2) -> None:
        self.batches = batches
        self.rows = rows
        self.epoch = self.taken = 0

    def __len__(self) -> int:
        return self.batches

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.taken = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.taken = state["epoch"], state["taken"]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        # Drawn for nothing, as a DataLoader does when it is iterated.
        torch.rand(())
        while self.taken < self.batches:
            number = self.epoch * 1000 + self.taken
            self.taken += 1
            yield toy_batch(number, self.rows)
        self.epoch, self.taken = self.epoch + 1, 0


def toy_batch(number: int, rows: int) -> dict[str, torch.Tensor]:
    """A batch with rows of different lengths, padded at their ends."""
    generator = torch.Generator().manual_seed(number)
    lengths = [3 + (number + 2 * row) % 7 for row in range(rows)]
    shape = (rows, max(lengths))
    ids = torch.randint(1, VOCABULARY, shape, generator=generator)
    mask = (torch.arange(shape[1]) < torch.tensor(lengths)[:, None]).long()
    labels = torch.where(mask == 1, ids, -100)
    labels[:, 0] = -100
    return {
        "input_ids": ids * mask,
        "labels": labels,
        "position_ids": torch.arange(shape[1]).expand(shape).contiguous(),
        "attention_mask": mask,
    }


def toy_model(seed: int = 0, *, dropout: float = 0.1, vocabulary: int = VOCABULARY) -> Any:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            attention_dropout=dropout,
            tie_word_embeddings=True,
        )
    )


class Signalling:
    """A plugin that sends this process a signal when a batch is computed."""

    def __init__(self, at: int, number: int) -> None:
        self.at, self.number, self.count = at, number, 0

    @hookimpl(wrapper=True)
    def make_training_step(self) -> Any:
        step = yield

        def signalling(batch: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                os.kill(os.getpid(), self.number)
            return step(batch)

        return signalling


class Validation:
    """Three batches, the same each time; sends this process a signal amid one evaluation.

    Args:
        interrupted: which evaluation that is, from 1; 0 for none.
    """

    def __init__(self, interrupted: int = 0) -> None:
        self.interrupted, self.count = interrupted, 0

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        self.count += 1
        for number in range(3):
            if number == 1 and self.count == self.interrupted:
                os.kill(os.getpid(), signal.SIGINT)
            yield toy_batch(500 + number, 2)


def new_plugins(*more: object) -> PluginManager:
    manager = PluginManager(ServiceContainer(), events=get_event_emitter())
    for each in more:
        manager.register_plugin(each)
    return manager


def packed_loader(model_directory: str) -> Any:
    from transformers import AutoTokenizer

    from truthgpt_services.data import DataLoaderFactory

    words = ["while", "for", "yield", "return", "import", "class", "lambda", "global"]
    texts = [" ".join(words[at % 8 :] * (1 + at % 5)) for at in range(60)]
    return DataLoaderFactory.create_train_loader(
        texts=texts,
        tokenizer=AutoTokenizer.from_pretrained(model_directory),
        max_length=32,
        batch_size=2,
        num_workers=2,
        tokenizing_processes=1,
    )


def configured(
    out: str | Path,
    *,
    plugins: PluginManager | None = None,
    model: Any = None,
    loader: Any = None,
    validation: Any = None,
    optimizer: Any = None,
    **settings: Any,
) -> TrainingService:
    model = model or toy_model()
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    service = TrainingService(plugins or new_plugins())
    service.configure(
        config={"precision": "float32", "epochs": 3, **settings},
        model=model,
        train_loader=loader or ToyLoader(),
        val_loader=validation,
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
        device="cpu",
        output_dir=out,
    )
    return service


def fingerprint(service: TrainingService) -> dict[str, str]:
    """A digest of each part of what a run resumes from."""
    contents = service._configured().state.capture()
    found = {}
    for name in contents.state:
        if name != "guard":
            tensors: dict[str, torch.Tensor] = {}
            decoded = state_dict_io.decode(contents.state[name], contents.training)
            text = json.dumps(state_dict_io.encode(decoded, tensors, name), sort_keys=True)
            found[name] = digest(text.encode(), tensors)
    return {**found, "weights": digest(b"", contents.model)}


def digest(text: bytes, tensors: dict[str, torch.Tensor]) -> str:
    made = hashlib.sha256(text)
    for name in sorted(tensors):
        made.update(name.encode())
        made.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return made.hexdigest()[:16]


def do(job: dict[str, Any]) -> dict[str, Any]:
    """Train as a job says; return the fingerprint, or what ended it."""
    # After a fork python's generator begins anew, by itself.
    seed_all(0)
    plugins = [Signalling(job["signal_at"], job["signal"])] if "signal_at" in job else []
    loader, model = ToyLoader(), None
    if job.get("packed"):
        loader, model = packed_loader(job["packed"]), toy_model(vocabulary=320)
    validation = Validation(job["interrupted"]) if "interrupted" in job else None
    service = configured(
        job["out"],
        plugins=new_plugins(*plugins),
        loader=loader,
        model=model,
        validation=validation,
        gradient_accumulation_steps=3,
        **job.get("settings", {}),
    )
    if job.get("resume"):
        service.resume()
    try:
        service.run()
    except TrainingInterrupted as error:
        return {"signal": error.signal_name, "checkpoint": str(error.checkpoint)}
    return fingerprint(service)


def last_step(out: Path) -> int:
    found = CheckpointStore(out / "checkpoints").all()
    return int(found[0].name.removeprefix("step-")) if found else 0


def kill_again_and_again(job: dict[str, Any]) -> dict[str, Any]:
    """Kill runs at random moments; return how often, and the fingerprint of the one let alone."""
    out, chance = Path(job["out"]), random.Random(job["seed"])
    kills = resumed = 0
    longest, before = job["longest"], None
    while kills < job["kills"]:
        child = os.fork()
        if child == 0:
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            do({**job, "resume": True})
            os._exit(0)
        # Where a step takes less, so many have been saved before, or the run would come to its end.
        moment = time.monotonic() + chance.uniform(0.0, longest)
        step = last_step(out)
        while time.monotonic() < moment and last_step(out) < step + job["most_steps"]:
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            break
        kills += 1
        found = CheckpointStore(out / "checkpoints").newest()
        assert not found.skipped, found
        resumed += found.path is not None
        if found.path == before:
            # On a machine that is slow now no step was saved in that time.
            longest *= 1.2
        before = found.path
    return {"kills": kills, "resumed": resumed, **do({**job, "resume": True})}


KINDS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "train": do,
    "kill": kill_again_and_again,
    "command": lambda job: sys.modules[COMMAND_RUNS].run_command(job),
}


def in_a_fork(job: dict[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            result = KINDS[job.get("kind", "train")](job)
            with os.fdopen(writing, "w") as pipe:
                json.dump(result, pipe)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return json.loads(text) if code == 0 else {"died": code}


if __name__ == "__main__":
    warnings.simplefilter("error")
    on_event(EventType.TRAINING_STEP, lambda event: None)
    # What a first run imports, so that the forks need not.
    configured(sys.argv[1], epochs=1, max_steps=1).run()
    jobs = json.load(sys.stdin)
    if any(job.get("kind") == "command" for job in jobs):
        import_module(COMMAND_RUNS).warm()
    json.dump([in_a_fork(job) for job in jobs], sys.stdout)
