"""A model that repeats itself, what optimizations make it guess with, and a service for it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from following import follow, in_fives, save

from truthgpt_services import InferenceService
from truthgpt_services.inference.draft_model import DraftModelDecoding
from truthgpt_services.inference.prompt_lookup import PromptLookupDecoding


@pytest.fixture
def repeating(model):
    """A model that says five tokens again and again."""
    return follow(model, in_fives)


@pytest.fixture
def draft(repeating, tokenizer, tmp_path):
    """The directory of a model that says the same as `repeating`."""
    return save(repeating, tokenizer, tmp_path / "draft")


@pytest.fixture(params=["prompt_lookup", "draft_model"])
def chosen(request, draft):
    """Make an optimization that lets `repeating` guess, of each kind."""
    if request.param == "prompt_lookup":
        return PromptLookupDecoding
    return lambda **options: DraftModelDecoding(**{"model": draft} | options)


@pytest.fixture
def configured(bare_plugins, tokenizer):
    """Return a service that generates with a model."""

    def configure(model, **config):
        service = InferenceService(bare_plugins)
        service.configure(model, tokenizer, config)
        return service

    return configure


@pytest.fixture
def passes():
    """Count the tokens of each pass through a model."""

    def count(model):
        sizes = []
        model.register_forward_pre_hook(
            lambda _, __, given: sizes.append(given["input_ids"].shape[1]), with_kwargs=True
        )
        return sizes

    return count
