"""What the user types to look around never imports torch: nobody waits seconds for help."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.new_process

SHOW = """
import json, sys
from truthgpt_core.cli.main import main
try:
    main()
finally:
    heavy = [name for name in ("torch", "transformers", "numpy") if name in sys.modules]
    with open({trace!r}, "w") as file:
        json.dump({{"heavy": heavy, "modules": sorted(sys.modules)}}, file)
"""


def imported(trace: Path, *arguments: str) -> tuple[int, str, list[str], list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", SHOW.format(trace=str(trace)), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    seen = json.loads(trace.read_text())
    return done.returncode, done.stderr, seen["heavy"], seen["modules"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["plugins"],
        ["plugins", "--json"],
        ["plugins", "--load"],
        ["optimize", "--help"],
        ["generate", "--help"],
        ["chat", "--help"],
        ["convert", "--help"],
        ["export", "--help"],
        ["export", "--to", "help"],
    ],
    ids=" ".join,
)
def test_looking_around_imports_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    """Help and the list of plugins, activated or not, need neither torch nor transformers."""
    code, error, heavy, _ = imported(tmp_path / "trace", *arguments)
    assert (code, error, heavy) == (0, "", [])


@pytest.mark.parametrize(
    ("arguments", "said", "exits"),
    [
        (["optimise"], 'Did you mean "optimize"?', 1),
        (["optimize", "m", "--apply", "quantise", "-o", "out"], 'Did you mean "quantize"?', 2),
        (["export", "m", "out", "--to", "safetensor"], 'Did you mean "safetensors"?', 2),
        (["optimize", "m", "--apply", "=x", "-o", "out"], "OPTION=VALUE", 2),
        (["optimize", "m", "--apply", "quantize"], "Add --output DIR", 2),
    ],
)
def test_a_wrong_name_imports_nothing_heavy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str, exits: int
) -> None:
    """A slip on the command line is answered before torch is imported."""
    monkeypatch.chdir(tmp_path)
    code, error, heavy, _ = imported(tmp_path / "trace", *arguments)
    assert (code, heavy) == (exits, [])
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["plugins"], ["plugins", "--json"]])
def test_listing_imports_no_plugin(tmp_path: Path, arguments: list[str]) -> None:
    """Neither help nor the list imports anything of services or plugins."""
    *_, modules = imported(tmp_path / "trace", *arguments)
    assert "truthgpt_core.cli.main" in modules
    assert not [
        name for name in modules if name.startswith(("truthgpt_services", "truthgpt_plugin_"))
    ]
