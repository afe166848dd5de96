"""Optimized models on disk: what was measured is what the user gets back."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from truthgpt_core.optimization import Applied, Optimization, OptimizationError, Options, Stage
from truthgpt_core.plugin_system import discovery
from truthgpt_services import ModelService
from truthgpt_services.errors import ModelError
from truthgpt_services.models.recipe import read_recipe
from truthgpt_services.models.saved_model import weights_bytes

pytestmark = pytest.mark.slow

IDS = list(range(5, 45))
DISCOVER = discovery.discover


@pytest.fixture
def service(plugins):
    return ModelService(plugins)


def logits(model):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([IDS])).logits


RELOAD = """
import sys, torch
from truthgpt_services import ModelService
for directory in sys.argv[1:]:
    model = ModelService().load_model(directory)
    with torch.inference_mode():
        torch.save(model(input_ids=torch.tensor([list(range(5, 45))])).logits, directory + "/out")
"""


def test_logits_in_a_new_process_equal_those_before_saving(save, tiny, tied, example_installed):
    """Bit for bit: with changed weights, with a tied matrix, and with no step at all."""
    saved = [
        save(tiny, "halve", name="halved"),
        save(tied, "halve", name="tied"),
        save(tiny, "idle", name="idle"),
    ]
    directories = [str(directory) for directory, _ in saved]
    subprocess.run([sys.executable, "-P", "-c", RELOAD, *directories], check=True)
    for directory, model in saved:
        assert torch.equal(torch.load(directory / "out"), logits(model))


def test_the_settings_chosen_here_are_what_is_used_again(save, tiny):
    """An `auto` that was resolved when saving is not resolved anew on another machine."""
    directory, _ = save(tiny, "halve")
    assert read_recipe(directory).steps[0].settings == {"note": "chosen here"}


def test_weights_that_no_step_changed_are_for_transformers_too(save, tiny, tied):
    """What only changes how a model is run leaves an ordinary directory, tied or not."""
    from transformers import AutoModelForCausalLM

    for source in (tiny, tied):
        directory, model = save(source, "idle", name=f"{source.name}-idle")
        theirs = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
        assert torch.equal(logits(theirs), logits(model))


def test_a_tied_matrix_is_stored_once_and_tied_again(save, service, tied):
    """Neither the file nor the model in memory holds it twice."""
    directory, model = save(tied, "halve")
    again = service.load_model(str(directory))
    assert again.lm_head.weight.data_ptr() == again.model.embed_tokens.weight.data_ptr()
    assert weights_bytes(again) == weights_bytes(model)
    stored = (directory / "weights.safetensors").stat().st_size
    assert stored < weights_bytes(model) + 5000


def test_weights_are_mapped_to_addresses_where_vectors_begin(save, service, tiny):
    """A saved model is read as fast as one in memory: no vector lies in two cache lines."""
    directory, _ = save(tiny, "halve")
    weights = service.load_model(str(directory)).model.layers[0].mlp.up_proj.weight
    assert weights.data_ptr() % 64 == 0


def test_bytes_of_weights_are_those_of_the_dtypes(save, service, tiny):
    """Half the linear layers' bytes are gone, and all others are still there."""
    before = service.load_model(str(tiny))
    linear = sum(
        layer.weight.numel()
        for name, layer in before.named_modules()
        if isinstance(layer, torch.nn.Linear) and name != "lm_head"
    )
    directory, _ = save(tiny, "halve")
    after = service.load_model(str(directory))
    assert weights_bytes(before) - weights_bytes(after) == 2 * linear


def test_truncated_weights_are_said_to_be_damaged(save, service, tiny):
    """A copy that broke off is recognized before it answers nonsense."""
    directory, _ = save(tiny, "halve")
    weights = directory / "weights.safetensors"
    size = weights.stat().st_size
    with weights.open("r+b") as file:
        file.truncate(size - 1)
    with pytest.raises(ModelError, match=f"has {size - 1} bytes and should have {size}"):
        service.load_model(str(directory))


def test_missing_weights_are_said_to_be_damaged(save, service, tiny):
    """A directory without its weights is not filled with random ones."""
    directory, _ = save(tiny, "halve")
    (directory / "weights.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has 0 bytes and should have"):
        service.load_model(str(directory))


def test_noise_of_the_right_size_is_said_to_be_damaged(save, service, tiny):
    """The size alone is not believed."""
    directory, _ = save(tiny, "halve")
    weights = directory / "weights.safetensors"
    weights.write_bytes(b"\xff" * weights.stat().st_size)
    with pytest.raises(ModelError, match="is damaged"):
        service.load_model(str(directory))


def change(directory, **values):
    path = directory / "truthgpt.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_newer_format_says_to_update(save, service, tiny):
    """A model that a later TruthGPT saved is not guessed at."""
    directory, _ = save(tiny)
    change(directory, format=99)
    with pytest.raises(ModelError, match=r"has format 99.*reads up to 2.*Update truthgpt-services"):
        service.load_model(str(directory))


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 3},
        {"steps": [{"name": "halve"}]},
        {"format": "one"},
        {"surprise": 1},
        {"dtype": "float12"},
    ],
)
def test_a_damaged_recipe_is_named(save, service, tiny, values):
    """An edited file gives one line and no traceback."""
    directory, _ = save(tiny, "halve")
    change(directory, **values)
    with pytest.raises(ModelError, match=r"truthgpt\.json is damaged"):
        service.load_model(str(directory))


def test_a_directory_that_was_not_saved_by_us_says_so(tmp_path):
    """Asked for a recipe, a directory without one says that it has none."""
    with pytest.raises(ModelError, match=r"has no truthgpt\.json"):
        read_recipe(tmp_path)


def test_a_recipe_of_other_weights_is_noticed(save, service, tiny):
    """Tensors that do not fit what the steps made are counted and one is named."""
    directory, _ = save(tiny, "idle")
    halve = {"name": "forget", "stage": "weights", "settings": {}, "distribution": ""}
    weights = (directory / "model.safetensors").rename(directory / "weights.safetensors")
    change(directory, steps=[halve], shared={"forgotten": "lm_head.weight"})
    assert weights.is_file()
    with pytest.raises(ModelError, match="does not fit its recipe: 1 tensors are missing"):
        service.load_model(str(directory))


def test_a_restore_that_forgets_something_is_told_to_its_author(save, service, tiny):
    """The file is as it was saved, and so is the plugin: its `restore` is what is wrong."""
    directory, _ = save(tiny, "forget")
    with pytest.raises(ModelError, match="the first is forgotten") as caught:
        service.load_model(str(directory))
    assert caught.value.hint.startswith('The restore of "forget" (')
    assert "the same modules and tensors as its apply" in caught.value.hint


def test_a_restore_of_another_version_is_told_with_both(
    save, service, tiny, example_distribution, monkeypatch
):
    """If the plugin changed since the model was saved, that is what to look at."""
    directory, _ = save(tiny, "forget")
    recipe = json.loads((directory / "truthgpt.json").read_text())
    recipe["steps"][0]["distribution"] = "truthgpt-example 0.9"
    change(directory, steps=recipe["steps"])
    monkeypatch.syspath_prepend(example_distribution)
    monkeypatch.setattr(discovery, "discover", DISCOVER)
    forget = type(service.make_optimization("forget", {}))
    monkeypatch.setattr(forget, "__module__", "example_optimizations")
    with pytest.raises(ModelError) as caught:
        service.load_model(str(directory))
    assert caught.value.hint == (
        "forget was saved with truthgpt-example 0.9, and truthgpt-example 1.0 is installed."
    )


class DropLast(Optimization[Options]):
    """Takes the last layer out; the configuration says so, and nothing is left to restore."""

    name = "drop_last"
    stage = Stage.STRUCTURE

    def apply(self, model, context):
        del model.model.layers[-1]
        model.config.num_hidden_layers -= 1
        return Applied(model)

    def restore(self, model, context):
        assert len(model.model.layers) == model.config.num_hidden_layers == 1
        return model


def test_a_change_of_structure_is_saved_and_restored(save, service, plugins, tiny):
    """`restore` is given a model made from the saved configuration, which has the change."""
    plugins.factories["optimization_factory"].register("drop_last", DropLast)
    directory, model = save(tiny, "drop_last", "halve")
    assert (directory / "weights.safetensors").is_file()
    again = service.load_model(str(directory))
    assert len(again.model.layers) == 1
    assert torch.equal(logits(again), logits(model))


def test_an_optimization_that_is_missing_says_what_to_install(save, tiny, bare_plugins):
    """A model that came from another machine names the distribution it needs."""
    directory, _ = save(tiny, "halve")
    recipe = json.loads((directory / "truthgpt.json").read_text())
    recipe["steps"][0]["name"] = "quantize"
    change(directory, steps=recipe["steps"])
    with pytest.raises(OptimizationError, match="pip install truthgpt-plugin-quantize"):
        ModelService(bare_plugins).load_model(str(directory))


def test_an_optimization_nobody_knows_names_where_it_came_from(save, tiny, bare_plugins):
    """The recipe knows the distribution of a stranger's step, and the error says it."""
    directory, _ = save(tiny, "halve")
    with pytest.raises(OptimizationError, match=r"truthgpt-example 1\.0"):
        ModelService(bare_plugins).load_model(str(directory))


def test_a_dtype_cannot_be_asked_of_an_optimized_model(save, service, tiny):
    """Its dtypes are part of what was measured."""
    directory, _ = save(tiny, "halve")
    with pytest.raises(ModelError, match="its dtypes are part of it"):
        service.load_model(str(directory), {"dtype": "bfloat16"})


def test_a_step_that_cannot_run_here_is_left_out_with_a_warning(save, service, tiny, caplog):
    """A model compiled elsewhere still runs on a machine without a compiler."""
    directory, model = save(tiny)
    refused = {"name": "refuse", "stage": "execution", "settings": {}, "distribution": ""}
    change(directory, steps=[refused])
    kind = type(service.make_optimization("refuse", {}))
    stage = kind.stage
    try:
        kind.stage = Stage.EXECUTION
        again = service.load_model(str(directory))
    finally:
        kind.stage = stage
    assert torch.equal(logits(again), logits(model))
    assert "runs without refuse: no cpu is ever good enough" in caplog.text


def test_optimize_model_applies_in_the_order_that_is_declared(service, tiny):
    """What changes weights comes first, whatever order was typed."""
    from truthgpt_core.event_system import EventType, on_event

    order = []
    on_event(EventType.OPTIMIZATION_APPLIED, lambda event: order.append(event.data["optimization"]))
    model = service.load_model(str(tiny))
    service.optimize_model(model, ["idle", service.make_optimization("halve", {})])
    assert order[-2:] == ["halve", "idle"]


def test_a_directory_may_be_given_as_text(service, model, tokenizer, tmp_path):
    """Saved, loaded and exported under a path that is text, as `load_model` takes it."""
    saved, plain = tmp_path / "saved", tmp_path / "plain"
    saved.mkdir()
    service.save_model(model, tokenizer, str(saved), source="tiny", steps=[])
    loaded = service.load_saved(str(saved), torch.device("cpu"))
    assert torch.equal(logits(loaded), logits(model))
    service.export(str(saved), str(plain))
    assert torch.equal(logits(service.load_model(str(plain))), logits(model))


def test_a_step_of_another_engine_has_no_effect_and_a_warning_says_so(save, service, tiny, caplog):
    """Once for each model that is loaded; on the engine that it changes there is none."""
    directory, _ = save(tiny)
    idle = {"name": "idle", "stage": "execution", "settings": {}, "distribution": ""}
    change(directory, steps=[idle])
    kind = type(service.make_optimization("idle", {}))
    source = service.resolve(str(directory))
    before = kind.engine
    try:
        for kind.engine in (None, "torch", "other"):
            assert not caplog.records
            service.make_engine(source, engine="torch")
    finally:
        kind.engine = before
    (record,) = caplog.records
    assert "runs without idle, which changes only how the engine other" in record.getMessage()
