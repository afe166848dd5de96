"""GGUF files as transformers directories; each is converted once."""

from __future__ import annotations

import json
import os

import gguf
import pytest
import torch

from truthgpt_services import ModelService
from truthgpt_services.errors import ModelError


@pytest.fixture
def service(bare_plugins):
    return ModelService(bare_plugins)


NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def interleaved(weight, heads):
    """Rows as llama.cpp orders them for its rotary embedding."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path, model, tokenizer):
    """Write a model as llama.cpp's converter would, in float32."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = tokenizer.get_vocab()
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
    writer.add_token_types(
        [gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(vocabulary) - 1)
    )
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in merges])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        if name.startswith("model.layers."):
            _, _, layer, rest = name.split(".", 3)
            part = rest.removesuffix(".weight")
            if part.endswith(("q_proj", "k_proj")):
                array = interleaved(
                    array,
                    config.num_attention_heads
                    if part.endswith("q_proj")
                    else config.num_key_value_heads,
                )
            writer.add_tensor(f"blk.{layer}.{NAMES[part]}.weight", array.copy())
        else:
            top = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm"}
            writer.add_tensor(f"{top.get(name, 'output')}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def file(tmp_path, model, tokenizer):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, model, tokenizer)
    return path


def test_a_gguf_file_becomes_the_model_that_it_was_made_from(
    service, file, model, tokenizer, cache
):
    """Same logits, same tokens; the result is kept in the cache and not made again."""
    loaded = service.load_model(str(file))
    ids = tokenizer("The lambda is é.").input_ids
    assert service.load_tokenizer(str(file))("The lambda is é.").input_ids == ids
    with torch.inference_mode():
        ours = loaded(input_ids=torch.tensor([ids])).logits
        theirs = model(input_ids=torch.tensor([ids])).logits
    assert torch.allclose(ours, theirs, atol=1e-4)
    (kept,) = (cache / "converted").iterdir()
    assert kept.name.startswith("tiny-")
    before = (kept / "model.safetensors").stat()
    service.load_model(str(file))
    after = (kept / "model.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def zero_a_thousand_bytes(kept):
    path = kept / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5000:-4000] = bytes(1000)
    path.write_bytes(content)


def break_the_configuration(kept):
    (kept / "config.json").write_text("{")


def remove_the_weights(kept):
    (kept / "model.safetensors").unlink()


def remove_the_marker(kept):
    (kept / "truthgpt.json").unlink()


def nest_the_marker(kept):
    (kept / "truthgpt.json").write_text('{"sha256": ' + "[" * 100_000)


def put_a_pipe_in_its_place(kept):
    (kept / "truthgpt.json").unlink()
    os.mkfifo(kept / "truthgpt.json")


@pytest.mark.parametrize(
    "damage",
    [
        zero_a_thousand_bytes,
        break_the_configuration,
        remove_the_weights,
        remove_the_marker,
        nest_the_marker,
        put_a_pipe_in_its_place,
    ],
)
def test_a_damaged_conversion_is_made_again(service, file, cache, caplog, damage):
    """One line says so, and the model is what it was."""
    directory = service.load_model(str(file)).config.name_or_path
    (kept,) = (cache / "converted").iterdir()
    whole = (kept / "model.safetensors").read_bytes()
    damage(kept)
    assert service.load_model(str(file)).config.name_or_path == directory
    assert (kept / "model.safetensors").read_bytes() == whole
    (said,) = [each.message for each in caplog.records if "converted again" in each.message]
    assert said.startswith(str(file))
    assert "\n" not in said


def test_another_content_is_another_entry_in_the_cache(service, file, cache, tmp_path):
    """A file that was replaced under its name is not taken for the earlier one."""
    service.load_tokenizer(str(file))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    service.load_tokenizer(str(file))
    assert len(list((cache / "converted").iterdir())) == 2


@pytest.mark.parametrize("kept", [2000, -100], ids=["its header", "all but 100 bytes"])
def test_a_damaged_gguf_file_is_one_line_and_leaves_nothing(service, file, cache, kept):
    """Cut short by a broken download: it cannot be converted, and the cache stays clean."""
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"tiny\.gguf cannot be converted") as caught:
        service.load_model(str(file))
    assert "\n" not in str(caught.value)
    assert list((cache / "converted").iterdir()) == []


def test_a_converted_gguf_file_is_an_ordinary_directory(service, file, tmp_path, model):
    """It loads with transformers alone, and TruthGPT takes it as a source again."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    service.export(str(file), tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    assert theirs.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path / "out"))
    for name, tensor in model.state_dict().items():
        assert torch.allclose(theirs.state_dict()[name], tensor, atol=1e-6), name
    assert service.resolve(str(tmp_path / "out")).kind == "directory"
