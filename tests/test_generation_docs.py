"""docs/generation.md says what the options are, and its examples run."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest

from truthgpt_core.decoding import SamplingParams

DOCS = (Path(__file__).parent.parent / "docs" / "generation.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)


def test_the_table_names_every_option_with_its_default() -> None:
    """In the order of `SamplingParams`, and no other."""
    table = DOCS.partition("## Options")[2].partition("## Order")[0]
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", table, re.MULTILINE)
    params = SamplingParams()
    declared = [(each.name, getattr(params, each.name)) for each in fields(params)]
    assert [(name, ast.literal_eval(default)) for name, default in rows] == declared


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_run(number: int) -> None:
    """Each by itself."""
    exec(compile(EXAMPLES[number], f"docs/generation.md, example {number + 1}", "exec"), {})
