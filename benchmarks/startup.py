"""How long `truthgpt --help` and `truthgpt plugins` take, against `python -c pass`.

The three take turns; the ratio of each round is to its own `python -c pass`.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

ROUNDS = 21
TRUTHGPT = Path(sys.executable).with_name("truthgpt")
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "truthgpt --help": [str(TRUTHGPT), "--help"],
    "truthgpt plugins": [str(TRUTHGPT), "plugins"],
}


def seconds(command: list[str]) -> float:
    """Run a command and return how long it took."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    print(f"Python {platform.python_version()}, truthgpt-core {version('truthgpt-core')}")
    base = times["python -c pass"]
    for name, values in times.items():
        ratios = sorted(value / each for value, each in zip(values, base, strict=True))
        print(
            f"{name:18} {median(values) * 1000:6.0f} ms   {median(ratios):5.2f} x "
            f"(middle half {ratios[ROUNDS // 4]:.2f} to {ratios[-ROUNDS // 4]:.2f})"
        )


if __name__ == "__main__":
    main()
