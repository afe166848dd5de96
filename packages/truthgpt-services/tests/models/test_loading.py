"""Models from transformers directories."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from truthgpt_core.config import ConfigManager
from truthgpt_core.decoding import GenerationError
from truthgpt_services import ModelService
from truthgpt_services.errors import DeviceError, ModelError
from truthgpt_services.models.loading import load_model, load_tokenizer, pick_device


@pytest.fixture
def service(bare_plugins):
    return ModelService(bare_plugins)


@pytest.fixture
def copy(tiny, tmp_path):
    """The tiny model, to be damaged."""
    return shutil.copytree(tiny, tmp_path / "copy")


def test_a_model_loads_in_the_dtype_it_is_stored_in(service, tiny):
    """Nothing is converted unless asked for, and layers like dropout are off."""
    model = service.load_model(str(tiny))
    assert model.dtype == torch.float32
    assert not model.training


@pytest.mark.parametrize("given", ["bfloat16", "torch.bfloat16", torch.bfloat16])
@pytest.mark.parametrize("option", ["dtype", "torch_dtype"])
def test_a_dtype_can_be_named_or_given(service, tiny, option, given):
    """Both of transformers' names for it work, as text or as the thing itself."""
    assert service.load_model(str(tiny), {option: given}).dtype == torch.bfloat16


def test_the_options_of_the_documented_example_work(service, tiny):
    """`load_model(name, {"torch_dtype": ..., "gradient_checkpointing": True})` does both."""
    model = service.load_model(
        str(tiny), {"torch_dtype": torch.bfloat16, "gradient_checkpointing": True}
    )
    assert model.dtype == torch.bfloat16
    # The attribute has another name in newer releases, which warn of the older one.
    name = "is_activation_checkpointing"
    assert getattr(model, name if hasattr(type(model), name) else "is_gradient_checkpointing")


def test_a_section_of_a_configuration_can_be_passed_as_it_is(service, tiny, tmp_path):
    """`load_model(config.model.name_or_path, config.model.__dict__)` is a documented call."""
    file = tmp_path / "train.yaml"
    file.write_text(
        f"model: {{name_or_path: {tiny}, torch_dtype: bfloat16}}\n"
        "data: {source: text, dataset: some}\n"
    )
    config = ConfigManager.load_config(str(file))
    model = service.load_model(config.model.name_or_path, config.model.__dict__)
    assert model.dtype == torch.bfloat16


def test_a_mistyped_option_is_suggested(service, tiny):
    """An option that would be ignored is an error instead."""
    with pytest.raises(ModelError, match=r'no option "dtpye".*Did you mean "dtype"\?'):
        service.load_model(str(tiny), {"dtpye": "bfloat16"})


def test_a_dtype_that_is_none_lists_those_there_are(service, tiny):
    """Weights in int8 are made by an optimization, and not by loading."""
    with pytest.raises(ModelError, match=r'no dtype "int8".*float32, bfloat16, float16'):
        service.load_model(str(tiny), {"dtype": "int8"})


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "cpu:x", "", "cuda:-1", f"cuda:{9**30}"])
def test_a_device_that_is_not_there_is_named(device):
    """The reason is one line and not torch's page."""
    with pytest.raises(DeviceError, match=r"evice.*Available: cpu") as caught:
        pick_device(device)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_device_that_nobody_has_is_unknown():
    """The line says what there is."""
    with pytest.raises(DeviceError, match=r'^Unknown device "gpu"\. Available: cpu'):
        pick_device("gpu")


@pytest.mark.parametrize("device", ["meta", "x" * 5000])
def test_what_is_no_device_to_run_on_is_refused(device):
    """Some of the devices that torch knows compute nothing."""
    with pytest.raises(DeviceError) as caught:
        pick_device(device)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("short", "dtype"), [("bf16", "bfloat16"), ("half", "float16")])
def test_a_dtype_may_have_its_short_name(service, tiny, short, dtype):
    """As everywhere else."""
    model = service.load_model(str(tiny), {"dtype": short})
    assert str(model.dtype) == f"torch.{dtype}"


def test_damaged_weights_are_said_to_be_damaged(copy):
    """A file that was cut short by a full disk is recognized."""
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"The weights in .* are damaged|cannot be loaded"):
        load_model(copy)


def test_weights_that_are_no_safetensors_are_said_to_be_damaged(copy):
    """Noise under the right name is no crash."""
    (copy / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match=r"are damaged|cannot be loaded"):
        load_model(copy)


def test_a_missing_configuration_is_named(copy):
    """The file that is missing stands in the error."""
    (copy / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json cannot be used"):
        load_model(copy)


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"model_type": "no-such-kind"}', "{}"])
def test_a_configuration_that_is_none_is_named(copy, text):
    """Whatever stands in the file, the error is one line that names it."""
    (copy / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json cannot be used") as caught:
        load_model(copy)
    assert "\n" not in str(caught.value)


def test_code_that_comes_with_a_model_is_not_run(copy):
    """A configuration that asks for code of its own is refused, and the code stays unread."""
    config = json.loads((copy / "config.json").read_text())
    config["model_type"] = "their_own"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text(f"open({str(copy / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelError):
        load_model(copy)
    assert not (copy / "ran").exists()


@pytest.mark.parametrize("text", [None, "{", "[]", '{"model": 3}'])
def test_a_tokenizer_that_does_not_work_is_said_so(copy, text):
    """A model without its tokenizer is of no use, and says what is missing."""
    (copy / "tokenizer_config.json").unlink()
    if text is None:
        (copy / "tokenizer.json").unlink()
    else:
        (copy / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match="has no tokenizer that works") as caught:
        load_tokenizer(copy)
    assert "\n" not in str(caught.value)


def test_a_loaded_and_a_saved_model_are_events(service, tiny, tmp_path):
    """Listeners learn which model was loaded, from where and onto what, and where it is saved."""
    from truthgpt_core.event_system import EventType, ModelLoaded, ModelSaved, on_event

    heard = []
    model, name = None, str(tiny)
    with (
        on_event(EventType.MODEL_LOADED, heard.append),
        on_event(EventType.MODEL_SAVED, heard.append),
    ):
        model = service.load_model(name, {"device": "cpu"})
        service.save_model(model, load_tokenizer(tiny), tmp_path, source=name, steps=())
    assert [event.payload for event in heard] == [
        ModelLoaded(name=name, path=name, device="cpu"),
        ModelSaved(name=name, path=str(tmp_path)),
    ]


def test_the_services_are_found_by_name(bare_plugins, tiny):
    """The container makes both services, once each."""
    registry = bare_plugins.container
    assert registry.get("model_service") is registry.get("model_service")
    with pytest.raises(GenerationError, match="Call configure first"):
        registry.get("inference_service").generate("x")
