"""The errors of this package."""

from __future__ import annotations

from truthgpt_core.errors import TruthGPTError


class DemoError(TruthGPTError):
    """The page cannot be made or served as it was asked for."""
