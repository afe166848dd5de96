"""What the tests of this package share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Tests load nothing from the hub; without this a mistake would go and look.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("OPENAI_API_KEY", None)

sys.path.insert(0, str(Path(__file__).parent))

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of the test's own."""
    directory = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TRUTHGPT_CACHE", str(directory))
    monkeypatch.setenv("TRUTHGPT_SETTINGS", str(directory / "settings"))
    return directory
