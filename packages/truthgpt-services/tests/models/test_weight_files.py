"""Which files the weights of a model are read from, and which are refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_core.dynamic_factory import DynamicFactory
from truthgpt_core.sources import ModelSource
from truthgpt_services.errors import ModelError
from truthgpt_services.models.lazy_weights import open_model
from truthgpt_services.models.loading import load_model
from truthgpt_services.models.model_files import check_files, weight_files
from truthgpt_services.models.sources import LocalSource, resolve


@pytest.fixture
def sharded(model, tiny, tmp_path):
    """The tiny model in several files, with their index."""
    directory = tmp_path / "sharded"
    model.save_pretrained(directory, max_shard_size=100_000)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, directory)
    return directory


def rename_shard(directory, name):
    """Have the index name another file instead of the first."""
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first = min(index["weight_map"].values())
    index["weight_map"] = {
        key: name if value == first else value for key, value in index["weight_map"].items()
    }
    path.write_text(json.dumps(index))
    return directory / first


class Evil:
    """What a pickle can do."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (self.marker, "w")


def found(path):
    """Find a model by its path."""
    sources = DynamicFactory(ModelSource)
    sources.register("local", LocalSource)
    return resolve(str(path), sources)


def refused(directory, match):
    """See that every way to a model refuses it, in one line."""
    for load in (load_model, open_model, found):
        with pytest.raises(ModelError, match=match) as caught:
            load(directory)
        assert "\n" not in str(caught.value)


def test_a_checkpoint_in_several_files_loads(sharded, model):
    """What transformers writes itself is what all of this lets pass."""
    assert len(weight_files(sharded)) > 1
    assert torch.equal(load_model(sharded).lm_head.weight, model.lm_head.weight)


def test_a_pickle_that_an_index_names_is_refused(sharded, tmp_path):
    """The safetensors files beside it do not make a pickle one."""
    rename_shard(sharded, "pytorch_model.bin")
    marker = tmp_path / "ran"
    (sharded / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(str(marker))))
    refused(sharded, "pytorch_model.bin is a pickle checkpoint")
    assert not marker.exists()


def test_an_index_of_pickles_beside_a_decoy_is_refused(sharded):
    """A safetensors file that no index names is not the model."""
    index = sharded / "model.safetensors.index.json"
    index.rename(sharded / "pytorch_model.bin.index.json")
    (sharded / "pytorch_model.bin").touch()
    refused(sharded, "is a pickle checkpoint")


@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "a/../../x.safetensors", "..\\x.safetensors"]
)
def test_an_index_that_leads_out_of_the_directory_is_refused(sharded, tiny, name):
    """A file of another model is not read, though it is there."""
    shutil.copytree(tiny, sharded.parent / "other")
    rename_shard(sharded, name)
    refused(sharded, "which is outside the model's directory")


def test_an_absolute_path_in_an_index_is_refused(sharded, tiny):
    """Where a model is does not say what else of the disk it is made of."""
    rename_shard(sharded, str(tiny / "model.safetensors"))
    refused(sharded, "which is outside the model's directory")


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "tokenizer.json", ""])
def test_an_index_that_names_no_weights_is_refused(sharded, name):
    """What it names has to be a safetensors file."""
    rename_shard(sharded, name)
    refused(sharded, "not a safetensors file|not the name of a file")


def test_a_file_that_an_index_names_and_that_is_not_there_is_named(sharded):
    """A download that broke off says which file it lacks."""
    rename_shard(sharded, "model-00099-of-00099.safetensors")
    refused(sharded, r"names model-00099-of-00099\.safetensors, which is not there")


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}, "metadata": {}}', "[" * 100_000],
)
def test_an_index_that_is_none_is_one_line(sharded, text):
    """Whatever is in the file, the error names it."""
    (sharded / "model.safetensors.index.json").write_text(text)
    refused(sharded, r"index\.json")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_link_out_of_the_directory_is_refused(tiny, tmp_path, name):
    """A link is as good as dots to get out, and is refused as they are."""
    directory = shutil.copytree(tiny, tmp_path / "copy")
    (directory / name).unlink()
    (directory / name).symlink_to(tiny / name)
    refused(directory, "is a link out of the model's directory")


def test_a_link_inside_the_directory_is_followed(tiny, tmp_path):
    """It leads to what comes with the model."""
    directory = shutil.copytree(tiny, tmp_path / "copy")
    (directory / "model.safetensors").rename(directory / "weights.safetensors")
    (directory / "model.safetensors").symlink_to("weights.safetensors")
    load_model(directory)


def cached(tiny, root):
    """Lay a model out as the cache of the Hugging Face hub does."""
    snapshot = root / "models--a--b" / "snapshots" / "0123abcd"
    blobs = root / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(tiny.iterdir())):
        shutil.copy(path, blobs / f"hash{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/hash{number}")
    return snapshot


def test_the_links_of_the_hub_s_cache_are_followed(tiny, tmp_path):
    """Every model that was downloaded is made of them."""
    snapshot = cached(tiny, tmp_path)
    load_model(snapshot)
    assert found(snapshot).file_bytes > 0


def test_a_link_out_of_the_hub_s_cache_is_refused(tiny, tmp_path):
    """What is excepted is the folder of contents, and not the form of the path."""
    snapshot = cached(tiny, tmp_path)
    blob = (snapshot / "model.safetensors").resolve()
    blob.unlink()
    blob.symlink_to(tiny / "model.safetensors")
    refused(snapshot, "is a link out of the model's directory")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "x.jinja"])
@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_what_is_no_regular_file_is_refused_before_it_is_opened(tiny, tmp_path, name, kind):
    """Opening a pipe would wait forever, and a device does not end."""
    directory = shutil.copytree(tiny, tmp_path / "copy")
    (directory / name).unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(directory / name)
    else:
        (directory / name).symlink_to("/dev/zero")
    refused(directory, "not a regular file|has no config.json")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_to_itself_is_one_line(tiny, tmp_path, name):
    """It is as good as nothing there."""
    directory = shutil.copytree(tiny, tmp_path / "copy")
    (directory / name).unlink()
    (directory / name).symlink_to(name)
    refused(directory, "has no weights|config.json")


def test_a_distributed_checkpoint_is_not_read_in_place_of_the_weights(tiny, tmp_path):
    """The library would prefer it, by another loader that checks less."""
    directory = shutil.copytree(tiny, tmp_path / "copy")
    name = "shard-00000-model-00001-of-00001.safetensors"
    shutil.copy(directory / "model.safetensors", directory / name)
    refused(directory, "holds a distributed checkpoint")


@pytest.mark.parametrize("name", ["adapter_model.bin", "../x.safetensors", "evil.bin", 3, []])
def test_weights_that_a_configuration_names_are_checked_too(tiny, tmp_path, name):
    """`transformers_weights` names a file as an index does."""
    directory = shutil.copytree(tiny, tmp_path / "copy")
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"transformers_weights": name}))
    (directory / "adapter_model.bin").touch()
    refused(directory, "pickle|outside|not a safetensors file|not the name of a file")


def test_an_adapter_beside_a_model_is_not_loaded_in_passing(tiny, tmp_path):
    """The library would load it, from a pickle too, and from wherever it says."""
    directory = shutil.copytree(tiny, tmp_path / "copy")
    (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "../x"}')
    (directory / "adapter_model.bin").touch()
    refused(directory, r"holds a PEFT adapter .* Merge it into its model")


def test_an_adapter_alone_says_how_to_make_a_model_of_it(tmp_path):
    """It is what peft saves, and many are on the hub."""
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="It is a PEFT adapter: merge it into its model"):
        found(tmp_path)


def test_a_header_larger_than_its_file_is_damage(tiny, tmp_path):
    """The length in the first eight bytes is not believed."""
    directory = shutil.copytree(tiny, tmp_path / "copy")
    (directory / "model.safetensors").write_bytes(b"\xff" * 7 + b"\x00" + b"{}")
    with pytest.raises(ModelError, match="are damaged"):
        load_model(directory)


@given(name=st.text(max_size=60) | st.integers() | st.none() | st.lists(st.text(max_size=3)))
def test_no_name_in_an_index_gets_out_of_the_directory(tmp_path_factory, name):
    """Whatever it names is a file inside the directory, or one line of refusal."""
    directory = tmp_path_factory.mktemp("index")
    (directory / "config.json").write_text("{}")
    index = {"metadata": {}, "weight_map": {"a": name}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError) as caught:
        weight_files(directory)
    assert "\n" not in str(caught.value)
    check_files(directory)
