"""How fast the core is: services, events, discovery and start-up, beside other libraries.

    python benchmarks/core.py

prints a table of ratios; `core_timing.py` says how they are measured, and each of
`core_services.py`, `core_events.py`, `core_discovery.py` and `core_commands.py` what is
compared with what. It runs in an environment of its own, made below `build/` the first
time, with today's core and fixed versions of the other libraries.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parent.parent
CORE = ROOT / "packages" / "truthgpt-core"
ENVIRONMENT = ROOT / "build" / "benchmarks" / "core-venv"

LIBRARIES = {
    "blinker": "1.9.0",
    "catalogue": "2.0.10",
    "dishka": "1.10.1",
    "pyee": "13.0.1",
    "svcs": "26.2.0",
    "wireup": "2.13.0",
}
"""What is measured beside the core, and in which version."""

OURS = ("truthgpt-core", "click", "packaging")
"""What else a figure depends on, and `pip` decides."""


def main() -> None:
    """Measure and print, in the environment that this needs."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--rounds", type=int, default=25, help="at least 2")
    arguments.add_argument(
        "--here", action="store_true", help="in this environment, with the libraries that it has"
    )
    given = arguments.parse_args()
    if given.rounds < 2:
        arguments.error("--rounds must be at least 2: the table shows a spread")
    if given.here:
        measure(given.rounds)
    else:
        python = make_environment()
        command = [str(python), __file__, "--here", "--rounds", str(given.rounds)]
        sys.exit(subprocess.call(command))


def make_environment() -> Path:
    """Make the environment, or renew the core in it; return its Python."""
    scripts = "Scripts" if os.name == "nt" else "bin"
    python = ENVIRONMENT / scripts / "python"
    made = ENVIRONMENT / "made-for.txt"
    wanted = [f"{name}=={version}" for name, version in LIBRARIES.items()]
    sign = "\n".join([sys.version, *wanted])
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    if not made.exists() or made.read_text() != sign:
        print(f"Making {ENVIRONMENT}", file=sys.stderr)
        venv.create(ENVIRONMENT, clear=True, with_pip=True)
        subprocess.run([*pip, str(CORE), *wanted], check=True)
        made.write_text(sign)
    else:
        subprocess.run([*pip, "--no-deps", "--force-reinstall", str(CORE)], check=True)
    return python


def measure(rounds: int) -> None:
    """Hold all contests in this environment and print the table."""
    # They import the core, which the environment that this was started in may lack.
    from core_commands import commands
    from core_discovery import discovery
    from core_events import emitting
    from core_services import singleton, transient
    from core_timing import HEADING, hold

    print(f"{'; '.join(describe())}; {rounds} rounds\n")
    folder = Path(tempfile.mkdtemp(prefix="truthgpt-benchmark-"))
    try:
        print(HEADING)
        for contest in (
            singleton(),
            transient(),
            *(emitting(count) for count in (0, 1, 10)),
            discovery(folder),
            commands(folder),
        ):
            print("\n".join(hold(contest, rounds)), flush=True)
    finally:
        shutil.rmtree(folder)


def describe() -> Iterator[str]:
    """Say what machine this is, and which versions take part."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield f"{cpu_name()}, {cores} cores, {platform.system()} {platform.release()}"
    yield f"Python {platform.python_version()}"
    for name in (*OURS, *LIBRARIES):
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{name} is not installed and left out"


def cpu_name() -> str:
    """Return what the processor calls itself."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", path.read_text(), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
