"""Code that comes with a model never runs, and nothing asks whether it may."""

from __future__ import annotations

import io
import json
import shutil
import sys

import pytest

from truthgpt_services import ModelService
from truthgpt_services.errors import ModelError
from truthgpt_services.models.lazy_weights import open_model
from truthgpt_services.models.loading import load_config, load_model, load_tokenizer

pytestmark = pytest.mark.slow

AUTO_MAP = {
    "AutoConfig": "evil.Config",
    "AutoModel": "evil.Model",
    "AutoModelForCausalLM": "evil.Model",
    "AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"],
}


@pytest.fixture
def evil(tiny, tmp_path, monkeypatch):
    """The tiny model with code beside it, and a user who would answer yes to any question."""
    directory = shutil.copytree(tiny, tmp_path / "evil")
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    (directory / "evil.py").write_text(code)
    (directory / "custom_generate").mkdir()
    (directory / "custom_generate" / "generate.py").write_text(code)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    yield directory
    assert not (tmp_path / "ran").exists()
    assert sys.stdin.read() == "y\n" * 9


def change(path, **entries):
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize("load", [load_config, load_model, open_model])
def test_a_model_of_an_unknown_type_is_refused_by_the_name_of_its_type(evil, load):
    """The user learns in one line that it is the type which transformers does not know."""
    change(evil / "config.json", model_type="their_own", auto_map=AUTO_MAP)
    with pytest.raises(ModelError, match=r"never runs: .* model type, 'their_own'") as caught:
        load(evil)
    assert "\n" not in str(caught.value)


def test_the_class_of_transformers_is_used_where_it_knows_the_type(evil):
    """Many checkpoints on the hub still name the code that they had before transformers did."""
    change(evil / "config.json", auto_map=AUTO_MAP)
    change(evil / "tokenizer_config.json", auto_map=AUTO_MAP)
    assert type(load_model(evil)).__module__.startswith("transformers.")
    assert load_tokenizer(evil)("a text").input_ids


def test_a_tokenizer_with_code_of_its_own_is_refused(evil):
    """A tokenizer class that transformers does not know is not looked for in the directory."""
    change(evil / "config.json", model_type="vit")
    change(evil / "tokenizer_config.json", auto_map=AUTO_MAP, tokenizer_class="Theirs")
    with pytest.raises(ModelError, match="code that comes with it") as caught:
        load_tokenizer(evil)
    assert "\n" not in str(caught.value)


def test_a_model_inside_a_model_runs_no_code_either(evil):
    """What transformers builds from a nested configuration asks no question."""
    nested = {"model_type": "clip_text_model", "auto_map": AUTO_MAP}
    change(
        evil / "config.json",
        model_type="llava",
        auto_map=AUTO_MAP,
        text_config=nested,
        vision_config=nested,
    )
    with pytest.raises(ModelError) as caught:
        load_model(evil)
    assert "\n" not in str(caught.value)


def test_a_generate_function_beside_a_model_is_left_alone(evil):
    """`custom_generate/generate.py` is not read, and the model loads."""
    load_model(evil)


@pytest.mark.parametrize("key", ["attn_implementation", "experts_implementation"])
def test_a_kernel_that_a_configuration_names_is_not_downloaded(evil, key):
    """Compiled code of the hub is code that comes with a model as well."""
    change(evil / "config.json", **{key: "someone/their-kernel"})
    with pytest.raises(ModelError, match="names a kernel to download, someone/their-kernel"):
        load_config(evil)


def test_settings_beside_a_gguf_file_are_not_read(evil, bare_plugins, tmp_path):
    """A GGUF file is converted alone, whatever lies in its folder."""
    (evil / "model.gguf").write_bytes(b"GGUF" + bytes(20))
    change(evil / "config.json", model_type="their_own", auto_map=AUTO_MAP)
    with pytest.raises(ModelError, match=r"model\.gguf cannot be converted"):
        ModelService(bare_plugins).load_model(str(evil / "model.gguf"))


def test_the_command_refuses_without_asking(evil, truthgpt):
    """One line and exit code 1, though `y` waits on standard input."""
    change(evil / "config.json", model_type="their_own", auto_map=AUTO_MAP)
    done = truthgpt("generate", evil, "Hi", "--device", "cpu", input="y\n" * 9)
    assert done.returncode == 1
    assert "'their_own'" in done.stderr
    assert "[y/N]" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
