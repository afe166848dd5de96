"""How long a saved model takes to its first token, from the start of the process.

    python benchmarks/start.py

`truthgpt generate` with one token of the demo model as it is, and as `quantize` saves it, and
Python that imports torch and transformers and does nothing else, without and with the class of the
model, which transformers imports late, and with the two parts of torch alone that it imports then:
they take turns, each in a new process, the files in the page cache. What the model costs is what a
round's process takes longer than its imports.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import decode

IMPORTS = "import torch, transformers"
PARTS = f"{IMPORTS}, torch.distributed.tensor, torch._dynamo"
CLASS = "import torch; from transformers import LlamaForCausalLM"
GENERATE = "from truthgpt_core.cli.main import main; main()"
PROMPT = "The future of AI is"


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--rounds", type=int, default=9)
    given = arguments.parse_args()
    decode.describe({})
    with tempfile.TemporaryDirectory() as folder:
        contenders = {
            "imports of torch and transformers": [sys.executable, "-c", IMPORTS],
            "torch.distributed.tensor and torch._dynamo, too": [sys.executable, "-c", PARTS],
            "imports of the model's class": [sys.executable, "-c", CLASS],
            **{
                f"first token, {name}": generating(model)
                for name, model in save(Path(folder)).items()
            },
        }
        turns = decode.take_turns(
            list(contenders), lambda name: {"seconds": seconds(contenders[name])}, given.rounds
        )
    first = next(iter(contenders))
    print("| | from the start | more than its imports (middle half) |\n|---|---:|---:|")
    for name, own in turns.items():
        pairs = zip(own, turns[first], strict=True)
        more = sorted(one["seconds"] - imports["seconds"] for one, imports in pairs)
        quarter = len(more) // 4
        shown = f"{median(more):.2f} s ({more[quarter]:.2f} to {more[-1 - quarter]:.2f})"
        print(f"| {name} | {decode.middle(turns, name, 'seconds'):.2f} s | {shown} |")


def save(folder: Path) -> dict[str, Path]:
    """Save the models that are loaded; return their directories by what was done to them."""
    script = """
import sys
from truthgpt_core.plugin_system import get_plugin_manager
from truthgpt_services.models.recipe import SavedStep
from truthgpt_services.services.model_service import ModelService
source, plain, quantized = sys.argv[1:]
service = ModelService(get_plugin_manager())
service.initialize()
model, tokenizer = service.load_model(source), service.load_tokenizer(source)
service.save_model(model, tokenizer, plain, source=source, steps=[])
made = service.make_optimization("quantize", {})
done = service.apply(made, model)
step = SavedStep(made.name, made.stage.name.lower(), done.settings, "")
service.save_model(done.model, tokenizer, quantized, source=source, steps=[step])
"""
    found = {"float32": folder / "plain", "int8": folder / "quantized"}
    for directory in found.values():
        directory.mkdir()
    subprocess.run(
        [sys.executable, "-c", script, decode.MODEL, *map(str, found.values())], check=True
    )
    return found


def generating(model: Path) -> list[str]:
    """Return the command that loads a model and makes one token."""
    options = ("--max-new-tokens", "1", "--raw", "--device", "cpu")
    return [sys.executable, "-c", GENERATE, "generate", str(model), PROMPT, *options]


def seconds(command: list[str]) -> float:
    """Run a command, and say how long it took."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
