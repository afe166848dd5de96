"""A checkpoint that leaves weights of its model without values is refused, by their names."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from truthgpt_services import ModelService
from truthgpt_services.errors import ModelError
from truthgpt_services.models.lazy_weights import open_model
from truthgpt_services.models.loading import load_model, quiet

pytestmark = pytest.mark.slow


@pytest.fixture
def change(tiny, tmp_path):
    """Make a copy of the tiny model with other tensors in its checkpoint."""

    def make(tensors, source=tiny):
        directory = shutil.copytree(source, tmp_path / "copy")
        path = directory / "model.safetensors"
        save_file(tensors(load_file(path)), path, metadata={"format": "pt"})
        return directory

    return make


def without_a_layer(tensors):
    """The checkpoint of a download that was cut and repaired by hand."""
    return {name: each for name, each in tensors.items() if ".layers.1." not in name}


def prefixed(tensors):
    """The checkpoint of a model that was inside another one."""
    return {f"wrapped.{name}": each for name, each in tensors.items()}


def other_shape(tensors):
    """The checkpoint of a model with other sizes."""
    return {name: each[:8].clone() if "q_proj" in name else each for name, each in tensors.items()}


CASES = {
    "a layer": (without_a_layer, r"9 tensors of LlamaForCausalLM are missing: model\.layers\.1\."),
    "prefixed": (prefixed, r'unexpected: wrapped\..* Its names begin with "wrapped\."'),
    "other shape": (other_shape, r"q_proj\.weight is 8×64 and must be 64×64"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_missing_is_named(change, case):
    """The error says how many tensors and the first of them, instead of random weights."""
    tensors, match = CASES[case]
    with pytest.raises(ModelError, match=match) as caught:
        load_model(change(tensors))
    assert "\n" not in str(caught.value)
    assert "and 6 more" in str(caught.value) or case != "a layer"


@pytest.mark.parametrize("case", CASES)
def test_reading_layer_by_layer_fills_in_no_random_weights(change, case, plugins, examples):
    """The path that `quantize` takes refuses what loading refuses."""
    tensors, match = CASES[case]
    directory = change(tensors)
    assert open_model(directory) is None
    service = ModelService(plugins)
    with pytest.raises(ModelError, match=match):
        service.load_and_optimize(str(directory), ["halve"], {"device": "cpu"})


def test_a_tied_weight_is_not_missing(tied):
    """The matrix that is both the first and the last is stored once."""
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    model = load_model(tied)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_table_of_another_version_is_no_reason(change):
    """Older checkpoints hold rotary tables, which are computed now."""
    more = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(8) for n in range(2)}
    load_model(change(lambda tensors: tensors | more))


def test_the_head_of_another_task_is_no_reason(change):
    """What a checkpoint has beside the whole of the model is not needed."""
    load_model(change(lambda tensors: tensors | {"score.weight": torch.ones(2, 64)}))


def test_the_weights_of_a_base_model_are_a_checkpoint(change, tied):
    """Some are saved without the class for a language model around them."""
    stripped = change(
        lambda tensors: {name.removeprefix("model."): each for name, each in tensors.items()}, tied
    )
    model, whole = load_model(stripped), load_model(tied)
    assert torch.equal(model.lm_head.weight, whole.lm_head.weight)


@pytest.mark.parametrize("kind", ["GPT2Config", "GPTNeoXConfig", "MixtralConfig", "BloomConfig"])
def test_what_transformers_saves_is_complete(tmp_path, kind):
    """Masks, tables and experts that are stacked while loading are not taken for missing."""
    sizes = {"vocab_size": 96, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
    config = getattr(transformers, kind)(**sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    with quiet():
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    load_model(tmp_path)


def test_an_expert_that_is_missing_is_one_line(tmp_path):
    """What transformers cannot stack is an error of ours too."""
    sizes = {"vocab_size": 96, "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}
    config = transformers.MixtralConfig(**sizes, num_attention_heads=4, num_local_experts=4)
    with quiet():
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {name: each for name, each in load_file(path).items() if ".experts.2." not in name}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


LIMITED = """
import resource, sys
from pathlib import Path
from truthgpt_services.errors import ModelError
from truthgpt_services.models.loading import load_model
resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
try:
    load_model(Path(sys.argv[1]))
except ModelError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "entries",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 900},
        {"hidden_size": 2**20},
        {"vocab_size": 10**10},
        {"intermediate_size": 10**12},
        {"num_labels": 10**9},
    ],
    ids=lambda entries: f"{entries}",
)
def test_a_model_much_larger_than_its_checkpoint_is_refused(tiny, tmp_path, entries):
    """It is refused before anything of that size is made, and in one line."""
    directory = shutil.copytree(tiny, tmp_path / "copy")
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(directory)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert "is not complete" in line or "cannot be used" in line


def write_gguf(path, **counts):
    """Write a GGUF file that names more than it has."""
    writer = gguf.GGUFWriter(path, "llama")
    sizes = {"block_count": 1, "head_count": 4, "embedding_length": 64} | counts
    for name, value in sizes.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_context_length(64)
    writer.add_feed_forward_length(64)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(32)
    writer.add_tensor("token_embd.weight", np.zeros((32, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("counts", "match"),
    [
        ({}, "are missing"),
        ({"block_count": 2**31}, r"block_count is 2,147,483,648, and it has 1 tensors"),
        ({"head_count": 0}, "cannot be converted"),
        ({"embedding_length": 2**30}, "asks for|cannot be converted"),
    ],
    ids=["missing", "blocks", "no heads", "large"],
)
def test_a_gguf_file_that_lacks_tensors_is_refused(bare_plugins, tmp_path, counts, match):
    """A converted model has no random weights either, and the cache stays empty."""
    path = tmp_path / "tiny.gguf"
    write_gguf(path, **counts)
    with pytest.raises(ModelError, match=match) as caught:
        ModelService(bare_plugins).export(str(path), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_commands_refuse_what_is_missing(change, truthgpt, tmp_path):
    """`export` writes nothing, and `generate` says nothing but what is wrong."""
    directory = change(without_a_layer)
    for command in (("generate", directory, "Hi"), ("export", directory, tmp_path / "out")):
        done = truthgpt(*command)
        assert done.returncode == 1
        assert not done.stdout
        assert "9 tensors of LlamaForCausalLM are missing" in done.stderr
    assert not (tmp_path / "out").exists()
