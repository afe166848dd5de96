"""Settings and tokenizers that are damaged or made to do harm: one line, and no hang."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truthgpt_core.decoding import GenerationError
from truthgpt_core.errors import TruthGPTError
from truthgpt_services import InferenceService, ModelService
from truthgpt_services.errors import ModelError
from truthgpt_services.models.loading import load_config, load_model, load_tokenizer
from truthgpt_services.models.sources import describe, resolve

pytestmark = pytest.mark.slow


@pytest.fixture
def copy(tiny, tmp_path):
    """The tiny model, to be damaged."""
    return shutil.copytree(tiny, tmp_path / "copy")


def change(path, **entries):
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def one_line(load, directory, match):
    """See that loading is refused in one line."""
    with pytest.raises(ModelError, match=match) as caught:
        load(directory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("num_attention_heads", 0, "num_attention_heads is 0, and must be at least 1"),
        ("num_attention_heads", "four", "num_attention_heads is 'four', and must be an integer"),
        ("num_attention_heads", None, "num_attention_heads"),
        ("num_key_value_heads", 3, "."),
        ("num_hidden_layers", -1, "num_hidden_layers is -1, and must be at least 1"),
        ("num_hidden_layers", 2.5, "num_hidden_layers is 2.5, and must be an integer"),
        ("hidden_size", [64], "hidden_size"),
        ("hidden_size", 10**400, "larger than 2"),
        ("vocab_size", {}, "vocab_size"),
        ("intermediate_size", -1, "negative dimension"),
        ("pad_token_id", 99_999, "Padding_idx must be within num_embeddings"),
        ("dtype", "load", r"config\.json cannot be used"),
        ("dtype", "no_such_dtype", r"config\.json cannot be used"),
        ("rope_parameters", {"rope_type": "none such"}, "none such"),
        ("hidden_act", "none such", "none such"),
        ("model_type", ["llama"], r"config\.json cannot be used"),
        ("quantization_config", 3, r"config\.json cannot be used"),
        ("quantization_config", {"quant_method": "gptq", "bits": 4}, "optimum"),
        ("layer_types", ["x"], "layer_types"),
    ],
)
def test_a_setting_that_makes_no_model_is_named(copy, key, value, match):
    """Whatever a library raises for it is one line of ours, that says which."""
    change(copy / "config.json", **{key: value})
    one_line(load_model, copy, match)


DEEP = ['{"a":' * 100_000, "[" * 100_000]


@pytest.mark.parametrize("text", [*DEEP, "[]", "3", "\xff", '{"hidden_size": NaN}'])
def test_a_configuration_that_is_none_is_one_line(copy, text):
    """Nested without end, no object, or not text at all: to each that reads it."""
    (copy / "config.json").write_text(text, encoding="latin-1")
    one_line(load_config, copy, r"config\.json cannot be used")
    if "NaN" not in text:
        one_line(lambda path: describe(path, "typed"), copy, r"config\.json cannot be used")


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["[]", "null", "{", *DEEP])
def test_other_settings_that_are_no_object_are_one_line(copy, name, text):
    """Also where transformers would go on without them."""
    (copy / name).write_text(text)
    for load in (load_model, load_tokenizer):
        one_line(load, copy, f"{name} cannot be used")


@pytest.mark.parametrize(
    "entries",
    [
        {"tokenizer_class": 3},
        {"added_tokens_decoder": 3},
        {"auto_map": 3},
        {"bos_token": 3},
        {"model_max_length": "x"},
        {"extra_special_tokens": 3},
    ],
    ids=str,
)
def test_settings_of_a_tokenizer_of_a_wrong_type_are_one_line(copy, entries):
    """What transformers stumbles over is an error of ours."""
    change(copy / "tokenizer_config.json", **entries)
    one_line(load_tokenizer, copy, "has no tokenizer that works")


KEYS = [
    *("num_attention_heads", "rope_parameters", "eos_token_id", "auto_map", "architectures"),
    *("dtype", "tie_word_embeddings", "id2label"),
]
PLAIN = st.none() | st.booleans() | st.integers() | st.text(max_size=5)


@given(value=PLAIN | st.lists(PLAIN, max_size=2), key=st.sampled_from(KEYS))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_value_of_a_setting_ends_in_a_traceback(tiny, tmp_path, key, value):
    """A configuration loads or is refused, whatever is in it."""
    directory = tmp_path / "any"
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(
        json.dumps(json.loads((tiny / "config.json").read_text()) | {key: value})
    )
    try:
        load_config(directory)
    except ModelError as error:
        assert "\n" not in str(error)  # noqa: PT017 - it may also load


FIRST = {"Sequence": {"id": "A", "type_id": 0}}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "X", "type_id": 0}}, FIRST],
    "pair": [FIRST, {"Sequence": {"id": "B", "type_id": 1}}],
}


@pytest.mark.parametrize(
    "part",
    [
        {"post_processor": TEMPLATE | {"special_tokens": {}}},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"model": {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]]}},
    ],
    ids=["template", "length", "unknown"],
)
def test_a_tokenizer_that_panics_is_refused_when_it_is_loaded(copy, part, capfd):
    """Its code in Rust raises what is no Exception, and writes a page before: neither is seen."""
    change(copy / "tokenizer.json", **part)
    one_line(load_tokenizer, copy, "has no tokenizer that works")
    assert capfd.readouterr().err == ""


class Panics:
    """A tokenizer that some texts are too much for."""

    eos_token_id = None

    def __call__(self, text, **options):
        """Raise what pyo3 raises: no Exception, and of a module that cannot be imported."""
        raise type("PanicException", (BaseException,), {})("index out of bounds")


def test_a_tokenizer_that_panics_at_a_prompt_is_one_line(model, bare_plugins):
    """What it raises then is an error of ours too."""
    service = InferenceService(bare_plugins)
    service.configure(model, Panics())
    with pytest.raises(GenerationError, match=r"The prompt is refused by the tokenizer: .*index"):
        service.generate("any")


@pytest.fixture
def beyond(copy):
    """The tiny model with a tokenizer that begins each text with a token which it lacks."""
    special = {"X": {"id": "X", "ids": [99_999], "tokens": ["X"]}}
    change(copy / "tokenizer.json", post_processor=TEMPLATE | {"special_tokens": special})
    return copy


@pytest.mark.parametrize("prompt", ["Hi", ["Hi", "there"]], ids=["one", "several"])
def test_a_token_beyond_the_vocabulary_is_one_line(beyond, bare_plugins, prompt):
    """It is refused before the model looks for its embedding, on any device."""
    service = InferenceService(bare_plugins)
    service.configure(load_model(beyond), load_tokenizer(beyond))
    with pytest.raises(GenerationError, match=r"has the token 99999, and the model knows 320"):
        service.generate(prompt)


@pytest.mark.parametrize(
    "spec",
    ["~nosuchuser/x", "x" * 5_000, "./" + "x" * 5_000, "package:json/" + "x" * 5_000, "a/b\0c/d"],
    ids=["user", "name", "path", "package", "null"],
)
def test_a_name_that_no_file_can_have_is_one_line(bare_plugins, spec):
    """Of a home directory that is not there, of 5,000 characters, with a null byte."""
    with pytest.raises(ModelError) as caught:
        resolve(spec, bare_plugins.factories["model_source_factory"])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_links_in_a_circle_are_one_line(tmp_path, bare_plugins):
    """Neither a directory nor a file is at the end of them."""
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / one).symlink_to(tmp_path / other)
    with pytest.raises(ModelError, match="There is no model at"):
        resolve(str(tmp_path / "a"), bare_plugins.factories["model_source_factory"])
    with pytest.raises(ModelError, match="There is no model at"):
        resolve(str(tmp_path / "a" / "model.gguf"), bare_plugins.factories["model_source_factory"])


@pytest.mark.parametrize("name", ["model.gguf", "pipe"])
def test_a_pipe_in_the_place_of_a_model_is_not_opened(tmp_path, bare_plugins, name):
    """Reading it would wait for a writer that never comes."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(ModelError, match="it is not a regular file"):
        resolve(str(tmp_path / name), bare_plugins.factories["model_source_factory"])


def test_the_commands_say_one_line(beyond, truthgpt):
    """From the command line: no traceback, and exit code 1."""
    for arguments in (("generate", beyond, "Hi"), ("generate", "~nosuchuser/x", "Hi")):
        done = truthgpt(*arguments)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith("truthgpt: ")


def test_a_model_whose_tokenizer_has_more_tokens_is_not_trained(beyond, bare_plugins):
    """The error comes before the texts are prepared."""
    from truthgpt_services.services.training_job import refuse_unknown_tokens

    service = ModelService(bare_plugins)
    tokenizer = service.load_tokenizer(str(beyond))
    tokenizer.add_tokens(["<one more>"])
    with pytest.raises(TruthGPTError, match="has the token 320, and the model knows 320 tokens"):
        refuse_unknown_tokens(service.load_model(str(beyond)), tokenizer)
