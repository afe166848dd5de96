"""Decodes a few tokens in a process of its own, as `decode_once.py DIRECTORY`.

Prints how often a graph was found compiled in the directory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from truthgpt_core.optimization import OptimizationContext
from truthgpt_plugin_compile.optimization import TorchCompile

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
)
model = LlamaForCausalLM(config).eval()
TorchCompile().apply(model, OptimizationContext("cpu", Path(sys.argv[1])))
cache = StaticCache(config=config, max_cache_len=16)
with torch.inference_mode():
    model(input_ids=torch.tensor([[3, 4]]), past_key_values=cache)
    model(input_ids=torch.tensor([[5]]), past_key_values=cache)
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
print("found", torch._dynamo.utils.counters["inductor"]["fxgraph_cache_hit"])
