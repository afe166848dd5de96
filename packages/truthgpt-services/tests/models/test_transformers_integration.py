"""transformers loads what TruthGPT saved once `truthgpt_services` is imported, and only then."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import truthgpt_core
import truthgpt_services
from truthgpt_services import ModelService
from truthgpt_services.errors import ModelError
from truthgpt_services.models.recipe import SavedStep

pytestmark = pytest.mark.slow

IDS = torch.tensor([list(range(5, 45))])


@pytest.fixture
def service(plugins, monkeypatch):
    # transformers asks the process's own plugin manager.
    monkeypatch.setattr(
        "truthgpt_services.services.model_service.get_plugin_manager", lambda: plugins
    )
    return ModelService(plugins)


@pytest.fixture
def saved(service, tokenizer, tmp_path):
    """Save a model with one optimization; returns the directory and the model."""

    def run(source, name, stage="weights"):
        model = service.load_model(str(source))
        applied = service.apply(service.make_optimization(name, {}), model)
        directory = tmp_path / f"{source.name}-{name}"
        directory.mkdir()
        step = SavedStep(name, stage, applied.settings, "")
        service.save_model(applied.model, tokenizer, directory, source=str(source), steps=[step])
        return directory, applied.model

    return run


def from_pretrained(directory, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, **options)


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize(
    ("source", "name", "stage"),
    [
        ("tiny", "halve", "weights"),
        ("tied", "halve", "weights"),
        ("tied", "idle", "execution"),
    ],
)
def test_transformers_loads_the_same_model(saved, request, source, name, stage):
    """Bit for bit: changed weights, a tied matrix, and weights that no step changed."""
    directory, model = saved(request.getfixturevalue(source), name, stage)
    theirs = from_pretrained(directory)
    assert torch.equal(logits(theirs), logits(model))
    assert [type(each) for each in theirs.modules()] == [type(each) for each in model.modules()]
    assert not theirs.training


def test_a_pipeline_of_transformers_generates_with_it(saved, tiny):
    """Named by its directory alone, as any other model."""
    from transformers import pipeline

    directory, _ = saved(tiny, "halve")
    made = pipeline("text-generation", model=str(directory))
    (said,) = made("The", max_new_tokens=3, do_sample=False)
    assert len(said["generated_text"]) > len("The")


def test_damaged_weights_are_refused_there_as_well(saved, tiny):
    """Zeroed bytes, and a dtype that the step would not have made."""
    directory, _ = saved(tiny, "halve")
    path = directory / "weights.safetensors"
    content = bytearray(path.read_bytes())
    whole = bytes(content)
    content[-5000:-4000] = bytes(1000)
    path.write_bytes(content)
    with pytest.raises(ModelError, match="its SHA-256 is not the one"):
        from_pretrained(directory)

    forged = whole.replace(b'"BF16"', b'"F16" ')
    path.write_bytes(forged)
    recipe = directory / "truthgpt.json"
    checksum = {"weights_sha256": hashlib.sha256(forged).hexdigest()}
    recipe.write_text(json.dumps(json.loads(recipe.read_text()) | checksum))
    with pytest.raises(ModelError, match=r"is float16 .* and should be bfloat16"):
        from_pretrained(directory)


def test_another_dtype_or_class_is_refused(saved, tiny):
    """The dtypes are part of what was measured, and the head is part of the model."""
    from transformers import AutoModel

    directory, _ = saved(tiny, "halve")
    with pytest.raises(ModelError, match="its dtypes are part of it"):
        from_pretrained(directory, dtype=torch.bfloat16)
    with pytest.raises(ModelError, match=r"cannot be loaded as a LlamaModel.*AutoModelForCausalLM"):
        AutoModel.from_pretrained(directory, local_files_only=True)


def test_what_transformers_is_told_is_not_another_quantization(saved, service, tiny):
    """The mark in config.json does not stop a further optimization, and is not kept in memory."""
    from truthgpt_services.models.sources import describe

    directory, _ = saved(tiny, "halve")
    assert "quantization_config" in json.loads((directory / "config.json").read_text())
    assert "quantization_config" not in describe(directory, "it").config
    assert not hasattr(service.load_model(str(directory)).config, "quantization_config")


SOURCES = os.pathsep.join(
    str(Path(each.__file__).parents[1]) for each in (truthgpt_services, truthgpt_core)
)

ORDERS = {
    "ours first": "import truthgpt_services, sys\n"
    "assert not {'torch', 'transformers'} & set(sys.modules), 'something heavy was imported'\n"
    "from transformers import AutoModelForCausalLM\n",
    "transformers first": "from transformers import AutoModelForCausalLM\n"
    "import truthgpt_services\n",
    "transformers first, not yet used": "import transformers, truthgpt_services\n"
    "from transformers import AutoModelForCausalLM\n",
    "transformers alone": "from transformers import AutoModelForCausalLM\n",
}
LOAD = """
import sys, torch
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
with torch.inference_mode():
    torch.save(model(input_ids=torch.tensor([list(range(5, 45))])).logits, sys.argv[1] + "/out")
"""


def load_in_new_process(order, directory, example_distribution):
    path = os.pathsep.join([str(example_distribution), SOURCES])
    return subprocess.run(
        [sys.executable, "-P", "-c", ORDERS[order] + LOAD, str(directory)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": path},
    )


@pytest.mark.new_process
@pytest.mark.campaign(cases=1)
@pytest.mark.parametrize("order", [each for each in ORDERS if each != "transformers alone"])
def test_the_order_of_imports_does_not_matter(order, saved, tiny, example_distribution):
    """And importing our package alone imports neither torch nor transformers."""
    directory, model = saved(tiny, "halve")
    done = load_in_new_process(order, directory, example_distribution)
    assert done.returncode == 0, done.stderr[-3000:]
    assert torch.equal(torch.load(directory / "out"), logits(model))


@pytest.mark.new_process
def test_without_our_package_the_error_says_what_to_import(saved, tiny, example_distribution):
    """Transformers alone never fills an ordinary model with changed weights."""
    directory, _ = saved(tiny, "halve")
    done = load_in_new_process("transformers alone", directory, example_distribution)
    assert done.returncode != 0
    assert "import truthgpt_services" in done.stderr.splitlines()[-1]


def test_the_model_card_says_how_to_load_it(saved, tiny):
    """What the hub reads is YAML, and a hostile source stays text."""
    import yaml

    from truthgpt_services.models.model_card import write_model_card
    from truthgpt_services.models.recipe import Recipe

    directory, _ = saved(tiny, "halve")
    card = (directory / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["tags"] == ["truthgpt", "halve"]
    assert "base_model" not in yaml.safe_load(front), "a path is not a model of the hub"
    assert "import truthgpt_services" in body

    step = SavedStep("x\n---\n<script>", "weights", {}, "")
    write_model_card(directory, Recipe("org/model", "float32", (step,)))
    _, front, body = (directory / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == "org/model"
    assert "\n---\n" not in body
    assert "# org/model" in body
