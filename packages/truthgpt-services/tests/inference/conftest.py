"""What tests of generating share."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from exact_engine import ExactEngine

from truthgpt_services import InferenceService


@pytest.fixture
def engine():
    return ExactEngine()


@pytest.fixture
def make(bare_plugins):
    def make_service(engine, **config):
        service = InferenceService(bare_plugins)
        service.configure(engine, None, config)
        return service

    return make_service


@pytest.fixture
def service(make, engine):
    return make(engine)
