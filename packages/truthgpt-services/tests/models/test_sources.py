"""Where a model is found, and what is said when it is not."""

from __future__ import annotations

import json
import os
import shutil
import sys

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_core.errors import TruthGPTError
from truthgpt_core.sources import ModelSource, ResolvedModel
from truthgpt_services import ModelService
from truthgpt_services.errors import ModelError
from truthgpt_services.models.sources import (
    HubSource,
    LocalSource,
    PackageSource,
    describe,
    local_model,
    resolve,
    vocabulary_size,
)


@pytest.fixture
def find(bare_plugins):
    factory = bare_plugins.factories["model_source_factory"]
    return lambda spec: resolve(str(spec), factory)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with a model in it, whose code must never run."""
    root = tmp_path / "site" / "some_weights"
    root.mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('imported')")
    (root / "Model-135M.gguf").write_bytes(b"GGUF rest")
    (root.parent / "outside.gguf").write_bytes(b"GGUF secret")
    monkeypatch.syspath_prepend(str(root.parent))
    return root


def test_a_directory_is_found_with_the_size_of_its_weights(find, tiny):
    """The report's row for the source's bytes comes from here."""
    found = find(tiny)
    assert (found.kind, found.path, found.spec) == ("directory", tiny.resolve(), str(tiny))
    assert found.file_bytes == (tiny / "model.safetensors").stat().st_size
    assert not found.is_gguf


def test_a_gguf_file_is_known_by_what_it_begins_with(find, tmp_path):
    """A file that git-lfs left as a pointer is not taken for a model."""
    good, bad = tmp_path / "good.gguf", tmp_path / "bad.gguf"
    good.write_bytes(b"GGUF and so on")
    bad.write_text("version https://git-lfs.github.com/spec/v1")
    assert find(good).is_gguf
    with pytest.raises(ModelError, match=r"is not a GGUF file.*Git LFS"):
        find(bad)


@pytest.mark.parametrize(
    ("config", "tokens"),
    [({"vocab_size": 7}, 7), ({"text_config": {"vocab_size": 8}}, 8), ({"vocab_size": "9"}, None)],
)
def test_the_number_of_tokens_is_known_before_a_model_is_loaded(tiny, tmp_path, config, tokens):
    """Where config.json says it, be it in the part for text."""
    directory = shutil.copytree(tiny, tmp_path / "model")
    (directory / "config.json").write_text(json.dumps(config))
    assert vocabulary_size(local_model(directory)) == tokens


def test_the_number_of_tokens_of_a_gguf_file_is_that_of_its_embedding(tmp_path):
    """A damaged file is one error that names it."""
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((320, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert vocabulary_size(local_model(path)) == 320
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ModelError, match=r"model\.gguf cannot be read"):
        vocabulary_size(local_model(path))


def test_a_path_is_taken_for_nothing_else(tiny, tmp_path, monkeypatch):
    """What names no file is not looked for on a hub or in a package."""
    monkeypatch.chdir(tmp_path)
    for name in ("someone/model", "package:some_weights/x.gguf"):
        with pytest.raises(ModelError, match="There is no model at"):
            local_model(tmp_path / name)


def test_a_file_in_a_package_is_found_without_importing_it(find, package):
    """Looking for weights must not run the code that lies beside them."""
    found = find("package:some_weights/Model-135M.gguf")
    assert (found.kind, found.path) == ("package", (package / "Model-135M.gguf").resolve())
    assert "some_weights" not in sys.modules


@pytest.mark.parametrize("file", ["../outside.gguf", "/etc/passwd", "x/../../outside.gguf"])
def test_a_package_s_file_is_inside_the_package(find, package, file):
    """A path that leads out of the package is refused, though there is a file."""
    with pytest.raises(ModelError, match="has no file"):
        find(f"package:some_weights/{file}")


def test_a_link_out_of_a_package_is_not_followed(find, package):
    """A link is as good as dots to get out, and is refused as they are."""
    (package / "link.gguf").symlink_to(package.parent / "outside.gguf")
    with pytest.raises(ModelError, match="has no file"):
        find("package:some_weights/link.gguf")


def test_a_mistyped_file_of_a_package_is_suggested(find, package):
    """The error names the file that was meant, and what there is."""
    with pytest.raises(ModelError) as caught:
        find("package:some_weights/Model-135.gguf")
    assert 'Did you mean "Model-135M.gguf"?' in str(caught.value)


@pytest.mark.parametrize(
    "spec", ["package:", "package:some_weights", "package:a-b/x", "package:/x"]
)
def test_half_a_package_name_says_how_to_write_it(find, spec):
    """The form is shown to whoever got it wrong."""
    with pytest.raises(ModelError, match="Write package:PACKAGE/FILE"):
        find(spec)


@pytest.mark.parametrize("name", ["surely_not_installed", "json.decoder", "sys"])
def test_a_package_that_is_not_there_is_named(find, name):
    """The error says which package to install, and a module without files is none."""
    with pytest.raises(ModelError, match=name.split(".")[0]):
        find(f"package:{name}/m.gguf")


def test_a_mistyped_path_is_suggested(find, tiny):
    """A directory that almost has the name is what was meant."""
    with pytest.raises(ModelError, match=r'There is no model at .*Did you mean "tiny"\?'):
        find(tiny.with_name("tyny"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-2.bin", "m.pt"])
def test_a_directory_of_pickles_is_refused_with_the_reason(find, tmp_path, name):
    """Loading a pickle runs code: that is said, and not only that it is unsupported."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).touch()
    with pytest.raises(ModelError, match=r"pickle checkpoint, and loading a pickle runs whatever"):
        find(tmp_path)


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.ckpt", "pytorch_model.bin"])
def test_a_pickle_file_is_refused_with_the_reason(find, tmp_path, name):
    """A pickle that is named itself is refused as well."""
    (tmp_path / name).touch()
    with pytest.raises(ModelError, match="is a pickle checkpoint"):
        find(tmp_path / name)


def test_pickles_beside_safetensors_do_no_harm(find, tiny, tmp_path):
    """A repository that has both is loaded from what is safe."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").touch()
    (tmp_path / "model.safetensors").write_bytes(b"12345678")
    assert find(tmp_path).file_bytes == 8


def test_an_optimized_directory_is_a_source_that_says_what_it_has(find, tmp_path):
    """What can be applied to it depends on the steps that it has."""
    steps = [{"name": "quantize"}, {"name": "torch_compile"}]
    (tmp_path / "truthgpt.json").write_text(json.dumps({"kind": "optimized", "steps": steps}))
    (tmp_path / "config.json").write_text('{"architectures": ["Some"], "vocab_size": 9}')
    (tmp_path / "weights.safetensors").touch()
    assert find(tmp_path).kind == "optimized"
    described = describe(tmp_path, "typed")
    assert described.optimizations == ("quantize", "torch_compile")
    assert (described.name, described.architecture) == ("typed", "Some")
    assert described.config["vocab_size"] == 9


@pytest.mark.parametrize("config", [None, "", "[]", "{"])
def test_a_configuration_that_cannot_be_read_is_named(tmp_path, config):
    """It is one line and no traceback, be it missing or damaged."""
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=r"config\.json cannot be used"):
        describe(tmp_path, "typed")


@pytest.mark.parametrize(
    ("marker", "kind"),
    [('{"kind": "converted", "steps": []}', "directory"), ("", "optimized"), ("[]", "optimized")],
)
def test_what_convert_wrote_is_a_directory_and_a_damaged_marker_is_not(
    find, tmp_path, marker, kind
):
    """Loading then says that the file is damaged, and does not take the weights as they are."""
    (tmp_path / "truthgpt.json").write_text(marker)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    assert find(tmp_path).kind == kind


def test_a_directory_without_a_configuration_points_at_its_gguf_file(find, tmp_path):
    """Who names the folder of a GGUF file is told the file."""
    (tmp_path / "a.gguf").touch()
    with pytest.raises(ModelError, match=r"has no config\.json.*Name the file: .*a\.gguf"):
        find(tmp_path)


def test_a_directory_without_weights_says_so(find, tmp_path):
    """A download that broke off after its configuration is recognized."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="has no weights"):
        find(tmp_path)


def test_some_other_file_is_no_model(find, tmp_path):
    """The error lists what a model can be."""
    (tmp_path / "song.mp3").touch()
    with pytest.raises(ModelError, match=r"is not a model\. A model is a directory"):
        find(tmp_path / "song.mp3")


def test_a_hub_id_that_cannot_be_looked_up_gives_one_line(find):
    """Without a network there is neither a traceback nor a long wait."""
    with pytest.raises(ModelError, match="is not on disk, and the hub cannot be reached") as caught:
        find("no-one/no-such-model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["my--model", "a..b", "-x", "x" * 97, "model.git"])
def test_what_cannot_be_a_hub_id_gives_one_line(find, spec):
    """The hub's own rules for names end as an error of ours too."""
    with pytest.raises(ModelError) as caught:
        find(spec)
    assert "\n" not in str(caught.value)
    assert spec in str(caught.value)


def test_a_mistyped_directory_that_looks_like_a_hub_id_is_suggested(find, tmp_path, monkeypatch):
    """A name without a slash is most likely a directory beside the person."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").mkdir()
    with pytest.raises(ModelError, match=r'Did you mean "my-model"\?'):
        find("my-modle")


@pytest.mark.parametrize("spec", ["", "  ", "what is this?", "a b"])
def test_what_names_no_model_is_told_what_does(find, spec):
    """Nothing at all, and something that no source claims."""
    with pytest.raises(ModelError, match="A model is a directory"):
        find(spec)


def test_a_plugin_can_add_a_kind_of_source(bare_plugins, find):
    """A source of a plugin takes part by its rank, before the ones that would refuse."""

    class Memory(ModelSource):
        name = "memory"
        rank = 1

        def claims(self, spec):
            return spec.startswith("memory:")

        def resolve(self, spec):
            raise TruthGPTError("asked the plugin")

    bare_plugins.factories["model_source_factory"].register("memory", Memory)
    with pytest.raises(TruthGPTError, match="asked the plugin"):
        find("memory:package:x")


@pytest.fixture
def found_by_a_plugin(bare_plugins, find):
    """Return what `resolve` makes of what a plugin's source returns."""

    def make(result):
        class Anything(ModelSource):
            name = "anything"

            def claims(self, spec):
                return True

            def resolve(self, spec):
                return result(spec) if callable(result) else ResolvedModel(spec, "zoo", result)

        bare_plugins.factories["model_source_factory"].register("anything", Anything)
        return find("lion")

    return make


def test_a_plugin_s_source_says_where_and_the_rest_is_filled_in(found_by_a_plugin, tiny):
    """An author returns what was typed, the kind and the path."""
    found = found_by_a_plugin(tiny)
    size = (tiny / "model.safetensors").stat().st_size
    assert (found.spec, found.kind, found.path, found.file_bytes) == ("lion", "zoo", tiny, size)


def a_pickle(directory):
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").touch()


def a_link_out(directory):
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.json").symlink_to("/etc/hostname")


def a_pipe(directory):
    (directory / "model.safetensors").unlink()
    os.mkfifo(directory / "model.safetensors")


def no_configuration(directory):
    (directory / "config.json").unlink()


def nothing(directory):
    shutil.rmtree(directory)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (a_pickle, "is a pickle checkpoint"),
        (a_link_out, "is a link out of the model's directory"),
        (a_pipe, "it is not a regular file"),
        (no_configuration, r"has no config\.json"),
        (nothing, "There is nothing at"),
    ],
)
def test_what_a_plugin_s_source_finds_is_checked_as_ours_is(
    found_by_a_plugin, tiny, tmp_path, change, said
):
    """A source that takes no care lets nothing in that would not be loaded from a path."""
    directory = shutil.copytree(tiny, tmp_path / "copy")
    change(directory)
    with pytest.raises(ModelError, match=said):
        found_by_a_plugin(directory)


def fails(spec):
    raise KeyError("lion")


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (fails, r'The model source "anything" \(.*Anything\) failed: KeyError: \'lion\''),
        (lambda spec: "/a/path", r'"anything" .* returned \'/a/path\'.*return a ResolvedModel'),
        (lambda spec: ResolvedModel(spec, "zoo", "/a/path"), "with a Path or None"),
    ],
    ids=["raises", "a path", "a text as path"],
)
def test_a_mistake_of_a_plugin_s_source_names_it(found_by_a_plugin, result, said):
    """It is one line, and says whose mistake it is."""
    with pytest.raises(ModelError, match=said) as caught:
        found_by_a_plugin(result)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_not_on_disk_is_found_and_cannot_be_loaded(found_by_a_plugin, bare_plugins):
    """One behind a URL is resolved, for the engines that run it; loading it says what it takes."""
    assert found_by_a_plugin(None).path is None
    with pytest.raises(ModelError, match=r'"lion" has no files on this machine.*needs an engine'):
        ModelService(bare_plugins).load_model("lion")


@given(st.text(max_size=40))
def test_every_word_is_claimed_by_a_source_or_by_none_without_a_crash(spec):
    """Whatever the user types is judged without touching more than its form."""
    for source in (PackageSource(), LocalSource(), HubSource()):
        assert source.claims("x" + spec.replace("\0", "")) in (True, False)
