"""Skipping tests of what an engine does not support."""

from __future__ import annotations

import pytest

from truthgpt_core.decoding import Engine

POSITIONS = 64
"""Of the sequences that tests open."""


def needs_that(name: str, is_supported: bool) -> None:
    """Skip a test of something that an engine does not support.

    Args:
        name: of the capability or the option.
        is_supported: whether the engine has it.
    """
    if not is_supported:
        pytest.skip(f"not supported: {name}")


def needs(engine: Engine, capability: str) -> None:
    """Skip a test of a capability that an engine does not have."""
    needs_that(capability, getattr(engine.capabilities, capability))
