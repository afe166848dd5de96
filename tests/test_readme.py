from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PLUGIN = ROOT / "examples" / "plugin"


def blocks(language: str) -> list[str]:
    """The code blocks of the README in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_plugin_in_the_readme_is_the_one_that_is_tested() -> None:
    """What the README shows is, letter for letter, what the tests install."""
    assert (PLUGIN / "pyproject.toml").read_text() in blocks("toml")
    assert (PLUGIN / "truthgpt_plugin_bfloat16.py").read_text() in blocks("python")


def test_the_plugin_in_the_readme_has_20_lines() -> None:
    """The README promises 20 lines, blank ones not counted."""
    files = [PLUGIN / "pyproject.toml", PLUGIN / "truthgpt_plugin_bfloat16.py"]
    lines = [line for file in files for line in file.read_text().splitlines() if line.strip()]
    assert len(lines) <= 20


def test_every_link_in_the_readme_leads_somewhere() -> None:
    """Links to files of the repository name files that are there."""
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
