"""Where TruthGPT keeps things on disk.

The cache directory holds what can be made again: converted weights and compiled
code. It may be deleted at any time. `TRUTHGPT_CACHE` moves it; otherwise it is
where the platform puts caches (`~/.cache/truthgpt` on Linux).
"""

from __future__ import annotations

import os
from pathlib import Path

CACHE = "TRUTHGPT_CACHE"


def cache_dir(*parts: str) -> Path:
    """Return the cache directory, or a place below it; it may not exist yet."""
    from platformdirs import user_cache_path

    given = os.environ.get(CACHE)
    root = Path(given).expanduser() if given else user_cache_path("truthgpt", appauthor=False)
    return root.joinpath(*parts)
