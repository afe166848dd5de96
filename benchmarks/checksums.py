"""What verifying the weights of a saved model adds to the time until its first token.

    python benchmarks/checksums.py [build/demo]

New processes load the model and make one token of a prompt, by turns with the checksum verified
and not, while the file is in the page cache. Time is from the start of the process, imports
included. "Hashing" is what the hash takes in its thread, beside the building of the model.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles

PROMPT = "What is the capital of France?"


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("model", type=Path, nargs="?", default=Path("build/demo"))
    arguments.add_argument("--rounds", type=int, default=11)
    arguments.add_argument("--worker", choices=("verified", "not"), help=argparse.SUPPRESS)
    arguments.add_argument("--began", type=float, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.worker:
        print(json.dumps(work(given.model, given.began, verified=given.worker == "verified")))
        return
    ways = ("verified", "not")
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for number in range(given.rounds + 1):
        for way in ways if number % 2 else reversed(ways):
            row = run(given.model, way)
            # The first round only brings the files into the page cache.
            if number:
                found[way].append(row)
    seconds = {way: [row["first_token"] for row in rows] for way, rows in found.items()}
    pairs = zip(*seconds.values(), strict=True)
    ratios = [verified / other for verified, other in pairs]
    low, _, high = quantiles(ratios, n=4)
    weights = next(given.model.glob("*.safetensors"))
    print(f"{weights} of {weights.stat().st_size / 1e6:.0f} MB, {given.rounds} rounds")
    print(f"first token, verified      {median(seconds['verified']):.2f} s")
    print(f"first token, not verified  {median(seconds['not']):.2f} s")
    print(f"ratio                      {median(ratios):.3f} (middle half {low:.3f} to {high:.3f})")
    hashing = [row["hashing"] for row in found["verified"]]
    shares = [row["hashing"] / row["first_token"] for row in found["verified"]]
    print(f"hashing, in its thread     {median(hashing):.2f} s, {median(shares):.1%} of the time")
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {libraries}")


def run(model: Path, way: str) -> dict[str, float]:
    """Start a process that makes one token."""
    command = [sys.executable, __file__, str(model), "--worker", way, "--began", str(time.time())]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    row: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return row


def work(directory: Path, began: float, *, verified: bool) -> dict[str, float]:
    """Load a model and make one token; return when that was, and what hashing took."""
    from truthgpt_services import InferenceService, ModelService
    from truthgpt_services.models import recipe, weights_file

    hashing = 0.0
    expected = recipe.read_recipe(directory).weights_sha256
    sha256 = weights_file.file_sha256

    def timed(path: Path) -> str:
        nonlocal hashing
        start = time.perf_counter()
        digest = sha256(path) if verified else expected
        hashing = time.perf_counter() - start
        return digest

    weights_file.file_sha256 = timed
    models, service = ModelService(), InferenceService()
    service.configure(models.load_model(str(directory)), models.load_tokenizer(str(directory)))
    service.generate(PROMPT, {"max_new_tokens": 1})
    return {"first_token": time.time() - began, "hashing": hashing}


if __name__ == "__main__":
    main()
