"""Finding plugins: what it costs to know which of 500 distributions are plugins that work.

The reference, one metadata scan, reads of every distribution its name and its entry
points, as `pip list` and all who ask "what is there, and what does it offer?" do: a name
stands in METADATA, which `importlib.metadata` parses. Entry points alone are cheaper to
read, and say nothing of what a plugin requires; that scan is in the table too.

TruthGPT reads METADATA of plugins only, and judges them: by the core, the Python and the
distributions that they require, and by one another.

Each sample is the first scan of a fresh process that has imported `importlib.metadata`, and
includes everything else that it imports. `python core_discovery.py NAME` is that process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

from core_site import MODULES, environment, make_site
from core_timing import Contest, Way, if_installed

PLUGINS, DISTRIBUTIONS = 50, 500


def discovery(folder: Path) -> Contest:
    """Find and judge 50 plugins among 500 distributions.

    Args:
        folder: where the distributions are written.
    """
    site = folder / "site-500"
    make_site(site, plugins=PLUGINS, distributions=DISTRIBUTIONS)
    return Contest(
        f"discovery and judging, {PLUGINS} plugins in {DISTRIBUTIONS} distributions",
        (
            _scanning("one metadata scan", "names", site),
            _scanning("**truthgpt**", "truthgpt", site, reach=1.5),
            _scanning("entry points alone", "entry points", site),
            *if_installed(
                {"catalogue": lambda: _scanning("catalogue, importing them", "catalogue", site)}
            ),
        ),
    )


def _scanning(name: str, scan: str, site: Path, *, reach: float | None = None) -> Way:
    command = [sys.executable, __file__, scan]

    def sample() -> float:
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment(site)
        )
        result = json.loads(done.stdout)
        assert result["imported"] == (PLUGINS if scan == "catalogue" else 0), result
        return float(result["nanoseconds"])

    return Way(name, sample, reach)


def scan_names() -> int:
    """Read the name and the entry points of every distribution."""
    return len([(each.name, each.entry_points) for each in metadata.distributions()])


def scan_entry_points() -> int:
    """Read the entry points of every distribution."""
    return len(metadata.entry_points(group="truthgpt.plugins"))


def scan_truthgpt() -> int:
    """Do what `truthgpt plugins` does before it prints."""
    from truthgpt_core.plugin_system.plugin import State
    from truthgpt_core.plugin_system.table import installed_rows

    rows = installed_rows().values()
    return sum(row.state is State.FOUND for row in rows if row.name.startswith("bench"))


def scan_catalogue() -> int:
    """Get the plugins of a registry, as spaCy does; it reads metadata when it is imported."""
    import catalogue

    return len(catalogue.create("truthgpt", "plugins", entry_points=True).get_all())


SCANS = {
    "names": scan_names,
    "entry points": scan_entry_points,
    "truthgpt": scan_truthgpt,
    "catalogue": scan_catalogue,
}


def main() -> None:
    """Time one scan and print what it took, and how many plugins it imported, as JSON."""
    scan = SCANS[sys.argv[1]]
    began = time.perf_counter_ns()
    found = scan()
    nanoseconds = time.perf_counter_ns() - began
    assert found >= PLUGINS, found
    imported = sum(name.startswith(MODULES) for name in sys.modules)
    print(json.dumps({"nanoseconds": nanoseconds, "imported": imported}))


if __name__ == "__main__":
    main()
