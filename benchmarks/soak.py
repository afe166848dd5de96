"""Long campaigns: what the tests try a little of, tried for as long as you like.

    python benchmarks/soak.py --factor 20 --repeats 3 --kills 1000 --seed 1

Property tests get `factor` times their examples, by a seed; the tests of faults and of threads
run again and again, each time in another order; training is killed at random moments. Prints a
table with the commit and the machine, and ends with 1 if anything failed. `nox -s soak` runs it
with all packages installed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parent
TESTS = tuple(
    ROOT / "packages" / f"truthgpt-{name}" / "tests"
    for name in ("core", "services", "plugin-native", "plugin-quantize", "plugin-serve")
)
HEADING = """\
| campaign | what | cases | failed | minutes |
|---|---|---:|---:|---:|"""
TESTED, NO_TESTS = 0, 5


class Found(NamedTuple):
    """What a campaign has tried, and what failed: names of tests, or sentences."""

    cases: int
    failed: list[str]


def main() -> None:
    """Run the campaigns that are asked for, and print a row for each."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--factor", type=int, default=20, help="times the examples of a test")
    arguments.add_argument("--repeats", type=int, default=3, help="runs of faults and threads")
    arguments.add_argument("--kills", type=int, default=1000, help="of training")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--only", nargs="+", choices=list(CAMPAIGNS), default=list(CAMPAIGNS))
    given = arguments.parse_args()
    print(f"{_described()}; seed {given.seed}\n\n{HEADING}", flush=True)
    failed: list[str] = []
    for name in given.only:
        what, campaign = CAMPAIGNS[name]
        began = time.monotonic()
        found = campaign(given)
        minutes = (time.monotonic() - began) / 60
        print(
            f"| {name} | {what} | {found.cases:,} | {len(found.failed)} | {minutes:.0f} |",
            flush=True,
        )
        failed += found.failed
    if failed:
        print("\nFailed:\n" + "\n".join(failed), file=sys.stderr)
        raise SystemExit(1)


def properties(given: argparse.Namespace) -> Found:
    """Try the property tests with more examples than `make test` does."""
    environment = {"SOAK_FACTOR": str(given.factor)}
    options = [f"--hypothesis-seed={given.seed}", "-p", "no:randomly"]
    return _total(_pytest(tests, options, environment) for tests in TESTS)


def faults(given: argparse.Namespace) -> Found:
    """Try what goes wrong in training, in another order each time."""
    return _again(given, ["-m", "fault or campaign", "--all-cases", "--new-processes"])


def threads(given: argparse.Namespace) -> Found:
    """Try the tests of threads and of processes at once, in another order each time."""
    return _again(given, ["-k", "threads or racing or two_processes or many_processes"])


def across(given: argparse.Namespace) -> Found:
    """Try what `make test` leaves out of the tests across packages, as it takes longest."""
    return _pytest(ROOT / "tests", ["-m", "campaign", "--all-cases"], {})


def kills(given: argparse.Namespace) -> Found:
    """Kill training at random moments, read what it left, and go on from there."""
    command = [sys.executable, str(HERE / "train_kills.py"), "--kills", str(given.kills)]
    done = subprocess.run(
        [*command, "--seed", str(given.seed)], capture_output=True, text=True, check=False
    )
    failed = [] if done.returncode == 0 else [f"train_kills.py: {done.stdout}{done.stderr}"]
    return Found(given.kills, failed)


def server(given: argparse.Namespace) -> Found:
    """Attack a server, end it with streams open, and hold it to schemas."""
    counts = {"--hostile": 500 * given.factor, "--ends": 5 * given.factor}
    counts["--schemas"] = 50 * given.factor
    options = [text for name, count in counts.items() for text in (name, str(count))]
    command = [sys.executable, str(HERE / "serve_soak.py"), "--seed", str(given.seed), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    failed = [] if done.returncode == 0 else [f"serve_soak.py: {done.stdout}{done.stderr}"]
    return Found(sum(counts.values()), failed)


def native(given: argparse.Namespace) -> Found:
    """Take random models random ways through the compiled engine, under sanitizers.

    Code for ARM runs under emulation, a tenth as often, where there are the tools for it.
    """
    sys.path.insert(0, str(ROOT / "packages" / "truthgpt-plugin-native" / "tests"))
    from test_cpp import EMULATED, SANITIZERS, build, build_emulated, missing_tools

    cases, failed = 0, []

    def run(name: str, command: list[str], models: int) -> None:
        nonlocal cases
        command = [*command, str(given.seed), str(models)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            failed.append(f"fuzz_engine {name}: {done.stdout}{done.stderr[-4000:]}")
        cases += models

    with tempfile.TemporaryDirectory() as folder:
        for sanitizer in SANITIZERS:
            run(sanitizer, [str(build(sanitizer, Path(folder)))], 50 * given.factor)
        if missing := missing_tools():
            print(f"Code for ARM is not tried {missing}", file=sys.stderr)
            return Found(cases, failed)
        for level in EMULATED:
            run(level, build_emulated(level, Path(folder)), 5 * given.factor)
    return Found(cases, failed)


CAMPAIGNS: dict[str, tuple[str, Callable[[argparse.Namespace], Found]]] = {
    "properties": (
        "examples of property tests, of parsers, ordering, kernels, storage",
        properties,
    ),
    "faults": ("kills, signals, damaged files and full disks, in training and data", faults),
    "threads": ("tests of threads and processes at once", threads),
    "native": ("random models taken random ways through the engine, under sanitizers", native),
    "server": (
        "hostile requests, ends with streams open, and schemas of functions",
        server,
    ),
    "across": ("models that take long to compile, and a real one, through all packages", across),
    "kills": ("training killed at a random moment and resumed, ending with the same bits", kills),
}


def _again(given: argparse.Namespace, options: list[str]) -> Found:
    seeds = range(given.seed, given.seed + given.repeats)
    return _total(
        _pytest(tests, [*options, "-p", "randomly", f"--randomly-seed={seed}"], {})
        for seed in seeds
        for tests in TESTS
    )


def _total(found: Iterator[Found]) -> Found:
    results = list(found)
    return Found(
        sum(each.cases for each in results),
        [failure for each in results for failure in each.failed],
    )


def _pytest(tests: Path, options: list[str], environment: dict[str, str]) -> Found:
    """Run tests of a folder in processes of their own, counted by `soak_count.py`."""
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder)
        variables = {
            **os.environ,
            **environment,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
            "SOAK_COUNTS": folder,
        }
        command = [sys.executable, "-m", "pytest", "-q", "-n", "3", "--dist", "loadgroup"]
        done = subprocess.run(
            [*command, "-p", "soak_count", *options, str(tests)],
            env=variables,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        rows = [json.loads(line) for file in counts.iterdir() for line in file.open()]
    failed = [row["test"] for row in rows if row["failed"]]
    if done.returncode not in (TESTED, NO_TESTS):
        print(done.stdout[-20_000:], done.stderr, file=sys.stderr)
        failed = failed or [f"{tests}: pytest ended with {done.returncode}"]
    return Found(sum(row["cases"] for row in rows), failed)


def _described() -> str:
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    import torch

    from truthgpt_services.measuring.machine import describe_machine

    machine = describe_machine(torch.device("cpu"))
    used = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "hypothesis"))
    return (
        f"commit {commit}; {machine.cpu}, {machine.cores} cores, {machine.cpu_capability}, "
        f"{machine.system}; Python {platform.python_version()}, {used}"
    )


if __name__ == "__main__":
    main()
