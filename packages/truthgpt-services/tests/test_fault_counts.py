"""The table of faults in docs/benchmarks.md says what the tests do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.new_process]

HERE = Path(__file__).parent
DOCS = HERE.parents[2] / "docs" / "benchmarks.md"
COUNT = """
import collections, json, pathlib, sys, pytest

class Count:
    def pytest_collection_finish(self, session):
        found = collections.Counter()
        for item in session.items:
            mark = item.get_closest_marker("fault")
            if mark is not None:
                found[mark.args[0]] += mark.kwargs.get("cases", 1)
        pathlib.Path(sys.argv[1]).write_text(json.dumps(found))

options = ["--collect-only", "--all-cases", "-qqq", "-p", "no:randomly", "-p", "no:xdist"]
sys.exit(pytest.main([*options, *sys.argv[2:]], plugins=[Count()]))
"""


def test_the_table_of_faults_has_the_counts_of_the_tests(tmp_path) -> None:
    """Each kind of fault is a row with as many cases as there are, and the last row is the sum."""
    files = [HERE / "training", HERE / "data"]
    counted = tmp_path / "counts.json"
    done = subprocess.run(
        [sys.executable, "-c", COUNT, str(counted), *map(str, files)],
        capture_output=True,
        text=True,
        cwd=HERE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(counted.read_text())
    _, _, section = DOCS.read_text(encoding="utf-8").partition("\n## Faults\n")
    rows = re.findall(r"^\| (.+?) \|.*\| (\d+) \|$", section.partition("\n## ")[0], re.MULTILINE)
    expected = {**counts, "all": sum(counts.values())}
    assert {name: int(count) for name, count in rows} == expected
