"""Any source in ordinary weights, in the format of an exporter."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from truthgpt_core.errors import UsageError
from truthgpt_core.hookspecs import hookimpl
from truthgpt_core.optimization import (
    Applied,
    Optimization,
    OptimizationError,
    Options,
    Stage,
)
from truthgpt_core.sources import Exporter
from truthgpt_services import ModelService
from truthgpt_services.errors import ModelError, OutputError

pytestmark = pytest.mark.slow


@pytest.fixture
def service(plugins):
    return ModelService(plugins)


@pytest.fixture
def without_plugins(only_services):
    """A service where no optimization is installed."""
    from truthgpt_core.plugin_system import PluginManager
    from truthgpt_core.service_registry import ServiceContainer

    return ModelService(PluginManager(ServiceContainer()))


@pytest.fixture
def use(plugins):
    """Register optimizations and exporters of a test, as a plugin would."""

    def register(*kinds):
        class Tested:
            @hookimpl
            def register_components(self, factories):
                for kind in kinds:
                    name = "exporter" if issubclass(kind, Exporter) else "optimization"
                    factories[f"{name}_factory"].register(kind.name, kind)

        plugins.register_plugin(Tested(), "tested")

    return register


def exported(service, source, tmp_path, **options):
    """Export a model and load it as a program does that knows nothing of TruthGPT."""
    service.export(str(source), tmp_path / "out", **options)
    return AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)


def assert_same(loaded, tensors):
    state = loaded.state_dict()
    assert state.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(state[name], tensor), name


# The directory


def test_a_directory_is_copied_as_it_is(service, tiny, tmp_path):
    """Nothing is changed that needs no conversion, not even the bytes of the weights."""
    service.export(str(tiny), tmp_path / "out")
    for file in tiny.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_an_earlier_export_is_replaced_only_if_asked(service, tiny, tmp_path):
    """And what is at the place of a stranger's directory never is."""
    service.export(str(tiny), tmp_path / "out")
    with pytest.raises(OutputError, match="Use --overwrite"):
        service.export(str(tiny), tmp_path / "out")
    service.export(str(tiny), tmp_path / "out", overwrite=True)
    with pytest.raises(OutputError, match="nothing in it says"):
        service.export(str(tiny), tmp_path, overwrite=True)


def test_what_was_exported_is_an_ordinary_source(service, tiny, tmp_path):
    """It is optimized and exported as any other."""
    service.export(str(tiny), tmp_path / "out")
    assert service.resolve(str(tmp_path / "out")).kind == "directory"
    service.export(str(tmp_path / "out"), tmp_path / "again")
    same = [(tmp_path / each / "model.safetensors").read_bytes() for each in ("out", "again")]
    assert same[0] == same[1]


def test_an_unknown_model_leaves_no_directory(service, tmp_path):
    """The directory is not made before there is something to put into it."""
    with pytest.raises(ModelError, match="There is no model"):
        service.export("./nowhere", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_all_but_weights_is_copied(service, tiny, tmp_path):
    """Templates in a folder too; pickles, which nobody should load, are left out."""
    source = shutil.copytree(tiny, tmp_path / "source")
    (source / "additional_chat_templates").mkdir()
    for name in ("additional_chat_templates/tool.jinja", "LICENSE", "pytorch_model.bin"):
        (source / name).write_text("x")
    service.export(str(source), tmp_path / "out")
    assert (tmp_path / "out" / "additional_chat_templates" / "tool.jinja").read_text() == "x"
    assert (tmp_path / "out" / "LICENSE").exists()
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()


def test_large_weights_are_cut_into_files(service, tiny, tmp_path):
    """No file is larger than asked, and an index says what is where."""
    loaded = exported(service, tiny, tmp_path, options={"max_shard_gb": 2e-4})
    files = sorted(each.name for each in (tmp_path / "out").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert len(files) > 2
    assert all((tmp_path / "out" / name).stat().st_size < 210_000 for name in files)
    assert_same(loaded, service.load_model(str(tiny)).state_dict())


# What is optimized


def test_an_optimized_model_is_written_in_ordinary_weights(service, save, tiny, tmp_path):
    """Modules of a step become transformers' own, in the dtype of the model."""
    directory, model = save(tiny, "halve", "idle")
    expected = {name: each.float() for name, each in model.state_dict().items()}
    loaded = exported(service, directory, tmp_path)
    assert {type(each) for each in loaded.modules() if isinstance(each, nn.Linear)} == {nn.Linear}
    assert_same(loaded, expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not config.keys() & {"quantization_config", "transformers_weights"}
    assert config["dtype"] == "float32"


LOAD = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
assert len(tokenizer) == model.config.vocab_size
assert not [name for name in sys.modules if name.startswith("truthgpt")]
print(sorted({type(each).__name__ for each in model.modules() if "Linear" in str(type(each))}))
"""


def test_it_loads_where_truthgpt_is_not(service, save, tiny, tmp_path):
    """Nothing of what was optimized is left in the directory: no card, report or mark."""
    directory, _ = save(tiny, "halve")
    (directory / "report.json").write_text("{}")
    service.export(str(directory), tmp_path / "out")
    names = {each.name for each in (tmp_path / "out").iterdir()}
    assert names == {each.name for each in tiny.iterdir()} | {"truthgpt.json"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", LOAD, str(tmp_path / "out")], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "['Linear']\n"), done.stderr


def test_embeddings_that_are_tied_stay_so(service, save, tied, tmp_path):
    """They are stored once, as transformers stores them."""
    directory, model = save(tied, "halve")
    loaded = exported(service, directory, tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert_same(loaded, {name: each.float() for name, each in model.state_dict().items()})
    assert (tmp_path / "out" / "model.safetensors").read_bytes().count(b"lm_head") == 0


class Shorten(Optimization[Options]):
    """Drops the last layer."""

    name = "shorten"
    stage = Stage.STRUCTURE
    ordinary = True

    def apply(self, model, context):
        model.model.layers = model.model.layers[:-1]
        model.config.num_hidden_layers -= 1
        model.config.layer_types = None
        return Applied(model.bfloat16())

    def restore(self, model, context):
        raise AssertionError("it is exported without its plugin")


@pytest.mark.parametrize("names", [("ruin",), ("shorten",), ("idle",), ("shorten", "ruin", "idle")])
def test_ordinary_results_are_exported_without_their_plugins(
    without_plugins, save, use, tiny, tmp_path, names
):
    """As are those of steps that only change how a model is run."""
    use(Shorten)
    directory, model = save(tiny, *names)
    loaded = exported(without_plugins, directory, tmp_path)
    assert loaded.dtype == model.dtype
    assert_same(loaded, model.state_dict())


def test_a_recipe_that_does_not_say_what_is_ordinary_asks_the_plugin(
    service, without_plugins, save, tiny, tmp_path
):
    """One of an earlier version stays readable."""
    directory, model = save(tiny, "ruin")
    path = directory / "truthgpt.json"
    recipe = json.loads(path.read_text())
    del recipe["steps"][0]["ordinary"]
    path.write_text(json.dumps(recipe))
    with pytest.raises(OptimizationError, match=r"ruin.*saved with truthgpt-example"):
        without_plugins.export(str(directory), tmp_path / "no")
    assert_same(exported(service, directory, tmp_path), model.state_dict())


def test_only_one_module_of_a_step_has_values_at_a_time(
    service, save, use, examples, tiny, tmp_path
):
    """So a model that fits into memory once, optimized, is exported there."""
    moments = []

    class Watched(examples.Halve):
        name = "watched"

        def plain_weights(self, name, module):
            filled = sum(not each.is_meta for each in self.model.parameters())
            moments.append((name, filled))
            return super().plain_weights(name, module)

        def restore(self, model, context):
            Watched.model = model
            return super().restore(model, context)

    class Patient(Exporter[Options]):
        name = "patient"

        def export(self, model, directory, options):
            assert set(dict(model.weights())) == set(model.tensors)
            del moments[:]
            for number, (name, tensor) in enumerate(model.weights()):
                assert tuple(tensor.shape) == model.tensors[name].shape
                assert str(tensor.dtype) == f"torch.{model.tensors[name].dtype}"
                assert len(moments) <= number + 1
            (directory / "done").touch()

    use(Watched, Patient)
    directory, _ = save(tiny, "watched")
    service.export(str(directory), tmp_path / "out", "patient")
    assert len(moments) == 14
    assert {filled for _, filled in moments} == {1}


# What goes wrong


def answering(weights):
    def plain_weights(self, name, module):
        return weights(module)

    return plain_weights


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (
            lambda module: None,
            r'None of "halve" \(.*\) says what ordinary weights model\.layers\.0',
        ),
        (lambda module: [module.weight], "returned an object of type list for model.layers.0"),
        (lambda module: {}, "left out weight of model.layers.0"),
        (
            lambda module: {"weight": module.weight.t()[1:]},
            r"gave weight of .* the shape \(63, 64\)",
        ),
        (lambda module: {"weight": "x"}, "gave weight of model.layers.0"),
        (
            lambda module: {"weight": module.weight, "extra": module.weight},
            "gave extra for model.layers.0.* which the ordinary module does not have",
        ),
        (lambda module: {}["x"], "failed in plain_weights at .*KeyError"),
    ],
    ids=["none", "a list", "nothing", "a shape", "a text", "too much", "raises"],
)
def test_a_mistake_of_plain_weights_names_its_author(
    service, save, examples, monkeypatch, tiny, tmp_path, weights, said
):
    """Nothing is written then."""
    directory, _ = save(tiny, "halve")
    monkeypatch.setattr(examples.Halve, "plain_weights", answering(weights))
    with pytest.raises(OptimizationError, match=said) as caught:
        service.export(str(directory), tmp_path / "out")
    assert '"halve"' in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_step_that_does_not_say_what_its_weights_are_is_refused(
    service, save, examples, monkeypatch, tiny, tmp_path
):
    """A directory of transformers with weights that it cannot read is not made."""
    directory, _ = save(tiny, "halve", "idle")
    monkeypatch.delattr(examples.Halve, "plain_weights")
    with pytest.raises(OptimizationError) as caught:
        service.export(str(directory), tmp_path / "out")
    assert "does not say what ordinary weights its modules have" in str(caught.value)
    assert f"Export the model that it was made from, {tiny}." in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_result_that_is_not_ordinary_though_it_says_so_is_refused(
    service, save, examples, monkeypatch, tiny, tmp_path
):
    """What would be exported is compared with what the configuration describes."""
    monkeypatch.setattr(examples.Forget, "ordinary", True, raising=False)
    directory, _ = save(tiny, "forget")
    with pytest.raises(ModelError, match=r"the first is forgotten.* should be an ordinary model"):
        service.export(str(directory), tmp_path / "out")


def test_damaged_weights_are_not_exported(service, save, tiny, tmp_path):
    """One byte of them is enough, before anything is written."""
    directory, _ = save(tiny, "halve")
    path = directory / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"weights\.safetensors is damaged"):
        service.export(str(directory), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Broken(Exporter[Options]):
    """Fails when it has begun."""

    name = "broken"

    def export(self, model, directory, options):
        (directory / "half").touch()
        raise KeyError("half")


class Lazy(Broken):
    """Writes nothing."""

    name = "lazy"

    def export(self, model, directory, options):
        pass


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Broken, r'The exporter "broken" \(.*Broken\) failed: KeyError'),
        (Lazy, r'The exporter "lazy" \(.*Lazy\) wrote nothing'),
    ],
)
def test_a_mistake_of_an_exporter_names_it_and_leaves_nothing(
    service, use, tiny, tmp_path, kind, said
):
    """A directory is whole or not there."""
    use(kind)
    with pytest.raises(ModelError, match=said):
        service.export(str(tiny), tmp_path / "out", kind.name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("to", "options", "said"),
    [
        ("safetensor", {}, r'named "safetensor"\. Did you mean "safetensors"\? Available: safet'),
        ("gguf", {}, r'There is no exporter named "gguf"\. Available: safetensors\.'),
        ("os.path", {}, "There is no exporter"),
        ("safetensors", {"max_shard": 1}, r'no option "max_shard" \(Did you mean "max_shard_gb"'),
        ("safetensors", {"max_shard_gb": "x"}, 'option "max_shard_gb": .* number'),
    ],
)
def test_wrong_names_and_options_are_said_before_any_work(service, tmp_path, to, options, said):
    """The model is not even looked for."""
    with pytest.raises(UsageError, match=said):
        service.export("./nowhere", tmp_path / "out", to, options)
