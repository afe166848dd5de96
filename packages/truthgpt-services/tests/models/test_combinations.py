"""Optimizing what is optimized already: what is possible works, the rest is refused at once."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from truthgpt_core.application import Application
from truthgpt_core.optimization import Optimization, OptimizationError, Options, Verdict
from truthgpt_services import ModelService
from truthgpt_services.measuring.protocol import StepToBuild
from truthgpt_services.measuring.worker import Worker
from truthgpt_services.models.recipe import SavedStep, read_recipe

pytestmark = pytest.mark.slow

IDS = torch.arange(5, 45).unsqueeze(0)


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS).logits


@pytest.fixture
def service(plugins):
    return ModelService(plugins)


@pytest.fixture
def halved(service, tokenizer, tiny, tmp_path):
    """A model that TruthGPT saved with halved weights, and a step that changes how it is run."""
    made = [service.make_optimization(name, {}) for name in ("halve", "idle")]
    model = service.load_model(str(tiny))
    steps = []
    for each in made:
        applied = service.apply(each, model)
        model = applied.model
        steps.append(SavedStep(each.name, each.stage.name.lower(), applied.settings, "example 1"))
    directory = tmp_path / "halved"
    directory.mkdir()
    service.save_model(model, tokenizer, directory, source=str(tiny), steps=steps)
    return directory


class Choosy(Optimization[Options]):
    """Takes no model that says `choosy` in its configuration."""

    name = "choosy"

    def check_source(self, source):
        if "choosy" in source.config:
            return Verdict.no(f"{source.architecture} is not to its taste", "Take another.")
        return Verdict.yes()

    def apply(self, model, context):
        raise AssertionError("the model was loaded")


def test_what_an_optimization_refuses_is_not_loaded(service, tiny, tmp_path):
    """The configuration is enough; the error names model, step, reason and what to do."""
    directory = tmp_path / "model"
    shutil.copytree(tiny, directory)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"choosy": True}))
    (directory / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(OptimizationError) as caught:
        service.load_and_optimize(str(directory), [Choosy()])
    assert str(caught.value) == (
        f'"choosy" cannot be applied to {directory}: LlamaForCausalLM is not to its taste. '
        "Take another."
    )


def test_the_same_optimization_again_is_refused_by_the_command(
    halved, truthgpt, example_installed, tmp_path
):
    """One line, exit code 1, and nothing is written, whatever the optimization says itself."""
    output = tmp_path / "out"
    run = truthgpt("optimize", halved, "--apply", "halve", "-o", output, "--device", "cpu")
    assert run.returncode == 1
    assert f'"halve" cannot be applied to {halved}: the model has it already' in run.stderr
    assert "Traceback" not in run.stderr
    assert not output.exists()


def test_one_more_optimization_goes_on_top_of_those_a_model_has(
    service, halved, examples, plugins, tmp_path
):
    """It is saved with all, what changes weights first, and answers as in memory."""
    output = tmp_path / "out"
    output.mkdir()
    worker = Worker(lambda what, done, total: None, Application(plugins))
    step = StepToBuild("ruin", {}, "example 1")
    worker.build(str(halved), "typed", [step], str(output), "auto", "cpu", 0)
    recipe = read_recipe(output)
    assert [each.name for each in recipe.steps] == ["halve", "ruin", "idle"]
    assert recipe.steps[0].settings == read_recipe(halved).steps[0].settings
    expected = -logits(service.load_model(str(halved)))
    assert torch.equal(logits(service.load_model(str(output))), expected)
    in_memory = service.load_and_optimize(str(halved), ["ruin"])
    assert torch.equal(logits(in_memory), expected)
