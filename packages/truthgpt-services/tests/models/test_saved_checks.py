"""What is wrong with a saved model is said before any of it is used."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from truthgpt_services import ModelService
from truthgpt_services.errors import ModelError
from truthgpt_services.models.recipe import SavedStep


@pytest.fixture
def service(plugins):
    return ModelService(plugins)


@pytest.fixture
def directory(service, tiny, tokenizer, tmp_path):
    """A saved model with weights that a step changed."""
    model = service.load_model(str(tiny))
    applied = service.apply(service.make_optimization("halve", {}), model)
    path = tmp_path / "saved"
    path.mkdir()
    step = SavedStep("halve", "weights", applied.settings, "")
    service.save_model(applied.model, tokenizer, path, source=str(tiny), steps=[step])
    return path


def seal(directory, **values):
    """Write a recipe whose size and checksum are those of the weights as they are now."""
    weights = (directory / "weights.safetensors").read_bytes()
    values |= {
        "weights_bytes": len(weights),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    path = directory / "truthgpt.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def forge(directory, change):
    """Change tensors, with a recipe that fits what comes of it."""
    path = directory / "weights.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    seal(directory)


def test_a_thousand_zeroed_bytes_are_noticed(directory, service):
    """Damage that leaves the size and the header as they were."""
    path = directory / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-5000:-4000] = bytes(1000)
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"weights\.safetensors is damaged: its SHA-256"):
        service.load_model(str(directory))


@pytest.mark.parametrize("sealed", [False, True])
def test_weights_that_are_replaced_meanwhile_are_not_used_unchecked(directory, service, sealed):
    """The checksum is begun before the tokenizer is read: others need one of their own."""

    def replace(_):
        for thread in threading.enumerate():
            if thread.name == "checksum":
                thread.join()
        content = bytearray((directory / "weights.safetensors").read_bytes())
        content[-5000:-4000] = bytes(1000)
        (directory / "new").write_bytes(content)
        (directory / "new").replace(directory / "weights.safetensors")
        if sealed:
            seal(directory)

    def make():
        return service.make_engine(service.resolve(str(directory)), before_loading=replace)

    if sealed:
        make()
    else:
        with pytest.raises(ModelError, match="it was changed while it was being loaded"):
            make()


UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (UP, lambda old: old.float(), r"is float32 \[256, 64\] and should be bfloat16 \[256, 64\]"),
        (UP, lambda old: old.view(torch.uint8), "is uint8"),
        (UP, lambda old: old.t().contiguous(), r"is bfloat16 \[64, 256\] and should be"),
        (NORM, lambda old: old.half(), r"is float16 \[64\] and should be float32 \[64\]"),
    ],
)
def test_another_dtype_or_shape_is_refused_with_both(directory, service, name, change, said):
    """A tensor that the step would not have made is named, with what it is and should be."""
    forge(directory, lambda tensors: tensors.update({name: change(tensors[name])}))
    with pytest.raises(ModelError, match=f"does not fit its recipe: {name} {said}"):
        service.load_model(str(directory))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [UP, NORM])
def test_values_that_are_not_finite_are_refused(directory, service, name, value):
    """A norm, or what a step made, with a NaN or an infinity in it."""
    forge(directory, lambda tensors: tensors[name].view(-1)[3:4].fill_(value))
    with pytest.raises(ModelError, match=f"{name} has values that are not finite"):
        service.load_model(str(directory))


def test_a_shared_name_has_to_fit_as_well(directory, service):
    """A recipe cannot pass off one tensor for another of a different shape."""
    forge(directory, lambda tensors: tensors.pop(NORM))
    seal(directory, shared={NORM: UP})
    with pytest.raises(ModelError, match=f"does not fit its recipe: {NORM} is bfloat16"):
        service.load_model(str(directory))


def test_a_recipe_without_a_checksum_says_to_make_the_model_again(directory, service):
    """Leaving the checksum out is no way around it, nor is naming an older format."""
    path = directory / "truthgpt.json"
    recipe = json.loads(path.read_text())
    del recipe["weights_sha256"]
    path.write_text(json.dumps(recipe))
    with pytest.raises(ModelError, match="is damaged: its SHA-256"):
        service.load_model(str(directory))
    path.write_text(json.dumps(recipe | {"format": 1}))
    with pytest.raises(ModelError, match=r"without a checksum of the weights.*truthgpt optimize"):
        service.load_model(str(directory))


@pytest.mark.parametrize(
    "text",
    [
        '{"kind": "optimized", "a": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "[]",
        "3",
        "{",
        "\ud800".encode("utf-8", "surrogatepass"),
        '{"kind": "optimized", "format": 2, "steps": [3]}',
    ],
    ids=["deep", "a list", "a number", "cut off", "no UTF-8", "steps that are none"],
)
def test_a_marker_that_is_no_recipe_is_one_line(directory, service, text):
    """Whatever is in it, the file is named and nothing is loaded."""
    content = text if isinstance(text, bytes) else text.encode()
    (directory / "truthgpt.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"truthgpt\.json is damaged: ") as caught:
        service.load_model(str(directory))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"weights_bytes": "many"},
        {"weights_bytes": -1},
        {"weights_bytes": 1.5},
        {"shared": {"a": 3}},
        {"shared": []},
        {"source": None},
        {"format": True},
        {"steps": [{"name": 3, "stage": "weights", "settings": {}, "distribution": ""}]},
        {"steps": [{"name": "halve", "stage": "soon", "settings": {}, "distribution": ""}]},
        {"steps": [{"name": "halve", "stage": "weights", "settings": [], "distribution": ""}]},
    ],
    ids=str,
)
def test_a_value_of_another_type_is_named(directory, service, values):
    """Each value of the recipe has the type that it is written with."""
    path = directory / "truthgpt.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(ModelError, match=rf"truthgpt\.json is damaged: {next(iter(values))}"):
        service.load_model(str(directory))


@pytest.mark.parametrize("name", ["truthgpt.json", "weights.safetensors"])
def test_a_fifo_is_not_waited_for(directory, service, name):
    """A pipe in the place of a file is an error, and no hang."""
    (directory / name).unlink()
    os.mkfifo(directory / name)
    with pytest.raises(ModelError, match=name):
        service.load_model(str(directory))


def test_files_have_the_permissions_that_the_umask_says(service, tiny, tokenizer, tmp_path):
    """Weights too: others may read what they may read of the rest."""
    before = os.umask(0o027)
    try:
        service.save_model(service.load_model(str(tiny)), tokenizer, tmp_path, source="x", steps=[])
        service.export(str(tiny), tmp_path / "converted")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(each.stat().st_mode) for each in tmp_path.rglob("*") if each.is_file()}
    assert modes == {0o640}
