"""Fixtures: `samples` builds reports, `parse` reads pages strictly, `hostile` is a bad text."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def _beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        f"truthgpt_report_tests_{name}", Path(__file__).with_name(f"{name}.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def samples() -> ModuleType:
    """The module of sample reports."""
    return _beside("report_samples")


@pytest.fixture(scope="session")
def parse() -> type:
    """The class that parses a page and refuses tags that are not balanced."""
    return _beside("pages").Page  # type: ignore[no-any-return]


@pytest.fixture
def hostile() -> str:
    """A text that would act if anything took it for markup or for terminal codes."""
    return "<script>alert(1)</script>\"'&[/bold][red]{{7*7}}\x1b[2J\u202e"
