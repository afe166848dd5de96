"""What docs/engines.md says of engines is what they declare."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .engine_table import table

PAGE = Path(__file__).parent.parent / "docs" / "engines.md"


def test_the_table_is_what_the_engines_declare(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python tests/engine_table.py` prints the one to put into the page."""
    # It finds packages that are not installed, which no other test may.
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert table() in PAGE.read_text(encoding="utf-8")
