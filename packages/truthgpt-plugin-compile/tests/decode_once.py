"""Decodes a few tokens in a process of its own, as `decode_once.py DIRECTORY`.

Prints how often a graph was found compiled in the directory. Fails if the tokens are not
those of the model before, or settings of the process not what they were.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch._inductor.config
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from truthgpt_core.optimization import OptimizationContext
from truthgpt_plugin_compile.optimization import TorchCompile

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
)
model = LlamaForCausalLM(config).eval()


def logits() -> torch.Tensor:
    """Read two tokens and decode a third."""
    cache = StaticCache(config=config, max_cache_len=16)
    with torch.inference_mode():
        model(input_ids=torch.tensor([[3, 4]]), past_key_values=cache)
        return model(input_ids=torch.tensor([[5]]), past_key_values=cache).logits


expected = logits()


def settings() -> list[object]:
    """What compiling might leave changed in the process."""
    configs = (torch._dynamo.config, torch._inductor.config)
    directory = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    return [directory, *(config.get_config_copy() for config in configs)]


before = settings()
TorchCompile(region="blocks").apply(model, OptimizationContext("cpu", Path(sys.argv[1])))
assert torch.allclose(logits(), expected, atol=1e-5)
assert settings() == before
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
print("found", torch._dynamo.utils.counters["inductor"]["fxgraph_cache_hit"])
