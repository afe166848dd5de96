"""Where TruthGPT keeps things on disk.

The cache directory holds what can be made again: converted weights and compiled
code. It may be deleted at any time. `TRUTHGPT_CACHE` moves it; otherwise it is
where the platform puts caches (`~/.cache/truthgpt` on Linux).

The settings directory holds what a person decided: which plugins are disabled.
`TRUTHGPT_SETTINGS` moves it; otherwise it is where the platform puts settings
(`~/.config/truthgpt` on Linux).
"""

from __future__ import annotations

import os
from pathlib import Path

CACHE = "TRUTHGPT_CACHE"
SETTINGS = "TRUTHGPT_SETTINGS"


def cache_dir(*parts: str) -> Path:
    """Return the cache directory, or a place below it; it may not exist yet."""
    from platformdirs import user_cache_path

    given = os.environ.get(CACHE)
    root = Path(given).expanduser() if given else user_cache_path("truthgpt", appauthor=False)
    return root.joinpath(*parts)


def settings_dir(*parts: str) -> Path:
    """Return the settings directory, or a place below it; it may not exist yet."""
    from platformdirs import user_config_path

    given = os.environ.get(SETTINGS)
    root = Path(given).expanduser() if given else user_config_path("truthgpt", appauthor=False)
    return root.joinpath(*parts)
