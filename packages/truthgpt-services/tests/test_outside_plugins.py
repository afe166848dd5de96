"""Plugins of third parties that import the core alone, each run through the command."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from truthgpt_services import ModelService
from truthgpt_services.models.recipe import SavedStep

pytestmark = pytest.mark.slow

PLUGINS = Path(__file__).parent / "outside_plugins"
NAMES = sorted(each.stem for each in PLUGINS.glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_they_are_short_and_import_the_core_alone(name, install):
    """An author needs no other package of ours, and no more lines than fit a page or two."""
    code = (PLUGINS / f"{name}.py").read_text()
    assert len(code.splitlines()) < 60
    modules = [
        module
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for module in (
            [node.module]
            if isinstance(node, ast.ImportFrom)
            else [each.name for each in node.names]
        )
    ]
    packages = {each.partition(".")[0] for each in modules}
    assert {each for each in packages if each.startswith("truthgpt")} == {"truthgpt_core"}
    install(name)
    script = f"import sys, {name}; print([each for each in sys.modules if 'services' in each])"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_an_exporter_gets_the_plain_weights_of_an_optimized_model(
    truthgpt, install, plugins, tiny, tokenizer, example_installed, tmp_path
):
    """It writes them as it likes, with an option of its own."""
    service = ModelService(plugins)
    applied = service.apply(service.make_optimization("halve", {}), service.load_model(str(tiny)))
    halved = tmp_path / "halved"
    halved.mkdir()
    step = SavedStep("halve", "weights", applied.settings, "truthgpt-example 1.0")
    service.save_model(applied.model, tokenizer, halved, source=str(tiny), steps=[step])
    install("npz_exporter")
    out = tmp_path / "out"
    done = truthgpt("export", halved, out, "--to", "npz", "--option", "compress=true")
    assert (done.returncode, done.stdout) == (0, f"Wrote {out}\n"), done.stderr
    assert sorted(each.name for each in out.iterdir()) == [
        *("config.json", "truthgpt.json", "weights.npz")
    ]
    with numpy.load(out / "weights.npz") as arrays:
        for name, tensor in applied.model.state_dict().items():
            assert (arrays[name] == tensor.float().numpy()).all()


def test_an_exporter_is_listed_with_its_options(truthgpt, install):
    """`--to help` has all of them, `--to NAME:help` the options of one."""
    install("npz_exporter")
    listed = truthgpt("export", "--to", "help").stdout.splitlines()
    assert listed == [
        "npz          weights.npz for NumPy, in float32, and config.json.",
        "safetensors  A directory as transformers writes it, which loads without TruthGPT.",
    ]
    said = truthgpt("export", "--to", "npz:help").stdout
    assert "  compress  true or false  default false\n    Take less room, and more time.\n" in said
    assert said.endswith("Write them as --option compress=false\n")


@pytest.fixture
def zoo(install, tiny, tmp_path, monkeypatch) -> Path:
    """A directory of models that the plugin `zoo` finds."""
    install("zoo_source")
    shutil.copytree(tiny, tmp_path / "zoo" / "lion")
    monkeypatch.setenv("ZOO", str(tmp_path / "zoo"))
    return tmp_path / "zoo"


def test_a_model_is_generated_with_and_exported_from_a_plugin_s_source(truthgpt, zoo, tmp_path):
    """Naming it is all that it takes."""
    arguments = ("--raw", "--max-new-tokens", 2, "--device", "cpu")
    done = truthgpt("generate", "zoo:lion", "Once", *arguments)
    assert done.returncode == 0, done.stderr
    done = truthgpt("export", "zoo:lion", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    same = [(each / "model.safetensors").read_bytes() for each in (zoo / "lion", tmp_path / "out")]
    assert same[0] == same[1]


def test_what_a_plugin_s_source_cannot_give_is_one_line(truthgpt, zoo, tmp_path):
    """Its own error as it is, ours for a pickle and for a model that is not on disk."""
    (zoo / "snake").mkdir()
    (zoo / "snake" / "config.json").write_text("{}")
    (zoo / "snake" / "pytorch_model.bin").touch()
    for animal, said in {
        "unicorn": 'truthgpt: There is no "unicorn" in the zoo. There is a dodo.',
        "snake": "pytorch_model.bin is a pickle checkpoint",
        "dodo": '"zoo:dodo" has no files on this machine that could be loaded (zoo). It needs an',
    }.items():
        done = truthgpt("export", f"zoo:{animal}", tmp_path / "out")
        assert done.returncode == 1
        assert said in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.fixture
def config(tiny, tmp_path) -> Path:
    """A configuration that trains the tiny model for two steps on rhymes."""
    file = tmp_path / "train.yaml"
    file.write_text(f"""\
model: {{name_or_path: "{tiny}"}}
data:
  source: rhymes
  dataset: cat
  options: {{verses: 200}}
  max_seq_len: 64
  tokenizing_processes: 1
training: {{max_steps: 2, train_batch_size: 2, precision: float32}}
output_dir: "{tmp_path / "trained"}"
""")
    return file


def test_a_model_is_trained_on_a_plugin_s_texts(truthgpt, install, config, tmp_path):
    """By the name of the source and an option of its own; what it recognized is said."""
    install("rhyme_texts")
    done = truthgpt("train", config)
    assert done.returncode == 0, done.stderr
    assert "cat: rhymes on cat\n" in done.stderr
    assert "Training texts: 1" in done.stderr
    assert (tmp_path / "trained" / "model" / "config.json").exists()


def test_what_a_plugin_s_texts_lack_is_one_line(truthgpt, install, config):
    """The error of the source reaches the user as it is."""
    install("rhyme_texts")
    done = truthgpt("train", config, "--set", "data.dataset=orange")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        'truthgpt: Nothing rhymes on "orange". Take another word.'
    )
