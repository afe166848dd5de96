"""A container for the tests of services."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from truthgpt_core.service_registry import ServiceContainer


@pytest.fixture
def container() -> Iterator[ServiceContainer]:
    with ServiceContainer() as container:
        yield container
