"""Starting `truthgpt`: what the user waits for to see help, or the table of 50 plugins.

Whole processes, each against a `python -c pass` of the same environment and the same
round. `PYTHONDONTWRITEBYTECODE` and the like are left out of their environment.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from core_site import environment, make_site
from core_timing import Contest, Way

PLUGINS = 50
DISTRIBUTIONS = 500
TRUTHGPT = str(Path(sys.executable).with_name("truthgpt"))


def commands(folder: Path) -> Contest:
    """Run `truthgpt --help` and `truthgpt plugins` with 50 plugins among 500 distributions.

    Args:
        folder: where the plugins are written.
    """
    site = folder / "site-of-commands"
    make_site(site, plugins=PLUGINS, distributions=DISTRIBUTIONS)
    _check(site)
    return Contest(
        f"start, {PLUGINS} plugins in {DISTRIBUTIONS} distributions",
        (
            _running("`python -c pass`", [sys.executable, "-c", "pass"], site),
            _running("**`truthgpt --help`**", [TRUTHGPT, "--help"], site, reach=9),
            _running("**`truthgpt plugins`**", [TRUTHGPT, "plugins"], site, reach=10),
        ),
    )


def _running(name: str, command: list[str], site: Path, *, reach: float | None = None) -> Way:
    surroundings = environment(site)

    def sample() -> float:
        began = time.perf_counter_ns()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=surroundings)
        return time.perf_counter_ns() - began

    return Way(name, sample, reach)


def _check(site: Path) -> None:
    """Refuse to time a table that lacks plugins."""
    done = subprocess.run(
        [TRUTHGPT, "plugins", "--json"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(site),
    )
    rows = [row for row in json.loads(done.stdout) if row["name"].startswith("bench")]
    assert [row["state"] for row in rows] == ["found"] * PLUGINS, rows
