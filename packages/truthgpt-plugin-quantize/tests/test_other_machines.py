"""What is made on one machine and on another, with other instructions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from truthgpt_core.optimization import OptimizationContext
from truthgpt_plugin_quantize.optimization import Quantize

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
}
RECIPES: dict[str, dict[str, Any]] = {
    "int8": {},
    "int8-whole": {"group_size": 0},
    "int4": {"scheme": "int4", "group_size": 64, "layers": "lm_head=int4"},
    "int8-dynamic": {"scheme": "int8-dynamic"},
    "mix": {"scheme": "int4", "layers": ["0=int8", "q_proj=none", "1.mlp=int8-dynamic"]},
}

# Rounded to 8 bits here and there, an activation between two steps may go either way.
NEAR = 0.01

OTHER = """
import json, sys, torch, transformers
from pathlib import Path
from safetensors.torch import load_file
from truthgpt_core.optimization import OptimizationContext
from truthgpt_plugin_quantize.optimization import Quantize
from reference_matmul import multiply

folder = Path(sys.argv[1])
said = json.loads((folder / "recipes.json").read_text())
context = OptimizationContext("cpu", folder, make_stored_matmul=lambda: multiply)

def make():
    config = transformers.LlamaConfig(**said["sizes"])
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.load_state_dict(load_file(folder / "plain.safetensors"))
    return model

found = {}
for name, (options, settings) in said["recipes"].items():
    stored = load_file(folder / f"{name}.safetensors")
    answers = load_file(folder / f"{name}-answers.safetensors")
    made = make()
    Quantize(**options).apply(made, context)
    state = made.state_dict()
    different = [key for key in stored if not torch.equal(state[key], stored[key])]
    restored = Quantize(**settings).restore(make(), context)
    restored.load_state_dict(stored, assign=True)
    with torch.inference_mode():
        far = [
            float((restored(input_ids=answers["ids"][:, :count]).logits - expected).std())
            / float(expected.std())
            for count, expected in ((1, answers["one"]), (12, answers["all"]))
        ]
    found[name] = [different, sorted(state.keys() ^ stored.keys()), max(far)]
print(torch.backends.cpu.get_cpu_capability(), json.dumps(found))
"""


def test_weights_are_the_same_and_answers_are_near(
    context: OptimizationContext, tmp_path: Path
) -> None:
    """Without SIMD the same integers and scales are made, and those of here answer alike there."""
    config = transformers.LlamaConfig(**SIZES)
    plain = transformers.AutoModelForCausalLM.from_config(config).eval()
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    ids = torch.arange(3, 15).unsqueeze(0)
    recipes = {}
    for name, options in RECIPES.items():
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        model.load_state_dict(plain.state_dict())
        recipes[name] = options, Quantize(**options).apply(model, context).settings
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
        with torch.inference_mode():
            one, every = (model(input_ids=ids[:, :count]).logits for count in (1, 12))
        answers = {"ids": ids, "one": one.contiguous(), "all": every.contiguous()}
        save_file(answers, tmp_path / f"{name}-answers.safetensors")
    (tmp_path / "recipes.json").write_text(json.dumps({"sizes": SIZES, "recipes": recipes}))

    places = filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
    done = subprocess.run(
        [sys.executable, "-c", OTHER, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"ATEN_CPU_CAPABILITY": "default", "PYTHONPATH": os.pathsep.join(places)},
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    capability, _, found = done.stdout.partition(" ")
    assert capability in ("DEFAULT", "NO"), "it ran with SIMD, so this shows nothing"
    for name, (different, missing, far) in json.loads(found).items():
        assert different == missing == [], name
        assert far < NEAR, name
