"""Models that are read from disk a module at a time: the same models, without the memory."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from truthgpt_core.optimization import Applied, Optimization, OptimizationError, Options
from truthgpt_services import ModelService
from truthgpt_services.errors import ModelError
from truthgpt_services.models.lazy_weights import open_model
from truthgpt_services.models.loading import load_model, quiet

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}

ZOO = {
    "llama": ("LlamaConfig", SIZES),
    "llama, tied": ("LlamaConfig", SIZES | {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", SIZES),
    "gpt2": ("GPT2Config", GPT2 | ENDS),
    "gemma": ("GemmaConfig", SIZES | {"head_dim": 16}),
    "gemma2": ("Gemma2Config", SIZES | {"head_dim": 16}),
    "phi": ("PhiConfig", SIZES),
    "mistral": ("MistralConfig", SIZES),
}
EXPERTS = ("MixtralConfig", SIZES | {"num_local_experts": 3, "num_experts_per_tok": 2})


def write(directory, kind, sizes, **how):
    """Write a model with random weights."""
    with quiet():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(getattr(transformers, kind)(**sizes))
        model.generation_config.max_new_tokens = 7
        model.save_pretrained(directory, **how)
    return directory


def assert_same(model, other):
    """See that two models are equal bit for bit, and in all else that they are made of."""
    for named in ("named_parameters", "named_buffers"):
        ours = dict(getattr(model, named)(remove_duplicate=False))
        theirs = dict(getattr(other, named)(remove_duplicate=False))
        assert list(ours) == list(theirs)
        assert len(list(getattr(model, named)())) == len(list(getattr(other, named)()))
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype
            assert tensor.device == theirs[name].device
            assert tensor.requires_grad == theirs[name].requires_grad
            assert torch.equal(tensor, theirs[name]), name
    assert type(model) is type(other)
    assert model.config.to_dict() == other.config.to_dict()
    assert model.config._attn_implementation == other.config._attn_implementation
    assert model.generation_config.to_dict() == other.generation_config.to_dict()
    assert model.name_or_path == other.name_or_path
    assert (model.dtype, model.training) == (other.dtype, other.training)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ZOO)
def test_a_model_filled_in_is_the_one_that_is_loaded(tmp_path, name, dtype):
    """Every parameter, buffer and setting is what loading the whole gives, tied or not."""
    write(tmp_path, *ZOO[name])
    opened = open_model(tmp_path, dtype=dtype)
    assert all(each.is_meta for each in opened.model.parameters())
    opened.fill_rest(opened.model)
    assert_same(opened.model, load_model(tmp_path, dtype=dtype))


def test_a_checkpoint_in_several_files_is_read_through_its_index(tmp_path):
    """Shards are found by the index that transformers writes."""
    write(tmp_path, *ZOO["llama"], max_shard_size=40_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    opened = open_model(tmp_path)
    opened.fill_rest(opened.model)
    assert_same(opened.model, load_model(tmp_path))


def test_a_checkpoint_that_is_converted_has_to_be_loaded_as_a_whole(tmp_path):
    """Experts that are stacked while they are loaded are in no file as the model has them."""
    write(tmp_path, *EXPERTS)
    assert open_model(tmp_path) is None


@pytest.mark.parametrize(
    "change",
    [{"quantization_config": {"quant_method": "gptq", "bits": 4}}, {"num_hidden_layers": 3}],
)
def test_what_a_checkpoint_does_not_hold_as_it_is_is_left_to_loading(tmp_path, change):
    """Weights of another library, and weights that are missing, are not filled with noise."""
    write(tmp_path, *ZOO["llama"])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert open_model(tmp_path) is None


def test_filling_a_module_leaves_the_others_on_disk(tmp_path):
    """Only the tensors of its own come into memory, at all places where they are tied."""
    write(tmp_path, *ZOO["llama, tied"])
    opened = open_model(tmp_path)
    model = opened.model
    opened.fill("lm_head")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    in_memory = [name for name, each in model.named_parameters() if not each.is_meta]
    assert in_memory == ["model.embed_tokens.weight"]


def test_filling_twice_keeps_what_was_changed(tmp_path):
    """A module that is in memory is not read again."""
    write(tmp_path, *ZOO["llama"])
    opened = open_model(tmp_path)
    opened.fill("lm_head")
    with torch.no_grad():
        opened.model.lm_head.weight.zero_()
    opened.fill("lm_head")
    opened.fill_rest(opened.model)
    assert not opened.model.lm_head.weight.any()


def test_a_truncated_file_is_said_to_be_damaged(tmp_path):
    """It is noticed before anything is read."""
    write(tmp_path, *ZOO["llama"])
    path = tmp_path / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 8)
    with pytest.raises(ModelError, match="are damaged"):
        open_model(tmp_path)


def test_a_file_that_shrinks_while_it_is_read_is_said_to_be_damaged(tmp_path):
    """What is missing is not taken for zeros."""
    write(tmp_path, *ZOO["llama"])
    opened = open_model(tmp_path)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(8)
    with pytest.raises(ModelError, match="ends before its last tensor"):
        opened.fill_rest(opened.model)


class Negate(Optimization[Options]):
    """Turns the sign of linear layers, one by one."""

    name = "negate"
    layerwise = True

    def apply(self, model, context):
        for name, module in list(model.named_modules()):
            if type(module) is torch.nn.Linear:
                context.fill(name)
                with torch.no_grad():
                    module.weight.neg_()
        return Applied(model)


class Careless(Optimization[Options]):
    """Puts in something that has no values."""

    name = "careless"
    layerwise = True

    def apply(self, model, context):
        model.lm_head = torch.nn.Linear(64, 96, bias=False, device="meta")
        return Applied(model)


@pytest.mark.parametrize("zoo", [ZOO["llama"], EXPERTS], ids=["from disk", "as a whole"])
def test_optimizing_while_loading_gives_what_it_gives_in_memory(tmp_path, plugins, zoo):
    """Whether its checkpoint can be read by the layer or not."""
    write(tmp_path, *zoo)
    service = ModelService(plugins)
    ours = service.load_and_optimize(str(tmp_path), [Negate()], {"device": "cpu"})
    theirs = service.optimize_model(load_model(tmp_path), [Negate()])
    assert_same(ours, theirs)


def test_what_an_optimization_leaves_without_values_is_named(tmp_path, plugins):
    """A layer that it made and never filled is an error, and no model that answers nonsense."""
    write(tmp_path, *ZOO["llama"])
    with pytest.raises(OptimizationError, match=r"lm_head\.weight was left without values"):
        ModelService(plugins).load_and_apply(str(tmp_path), Careless(), {"device": "cpu"})
