"""What tests of saved models share."""

from __future__ import annotations

import pytest

from truthgpt_services.models.recipe import SavedStep


@pytest.fixture
def save(service, tokenizer, tmp_path):
    """Load a model, apply optimizations, save; returns the directory and the model."""

    def run(source, *names, name=None):
        model = service.load_model(str(source))
        steps = []
        for each in names:
            optimization = service.make_optimization(each, {})
            applied = service.apply(optimization, model)
            model = applied.model
            stage = optimization.stage.name.lower()
            steps.append(SavedStep(each, stage, applied.settings, "truthgpt-example 1.0"))
        directory = tmp_path / (name or "-".join(("saved", *names)))
        directory.mkdir()
        service.save_model(model, tokenizer, directory, source=str(source), steps=steps)
        return directory, model

    return run
