"""For tests of plugins: a language model small enough to optimize in seconds.

It has the parts of a real one (a trained tokenizer, tied embeddings, grouped
attention) and random weights, so what it writes is noise.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from truthgpt_services.measuring.text import evaluation_text
from truthgpt_services.models.loading import quiet

VOCABULARY = 512
END = "<|endoftext|>"


def write_tiny_model(
    directory: Path, *, seed: int = 0, tied: bool = True, chat_template: str | None = None
) -> None:
    """Write a Llama of two layers and 64 channels as a transformers directory.

    Args:
        directory: is made if it is not there.
        seed: of its weights; the same seed gives the same bytes.
        tied: whether the output embedding is the input embedding.
        chat_template: of its tokenizer; None for none.
    """
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
                tie_word_embeddings=tied,
                bos_token_id=0,
                eos_token_id=0,
                pad_token_id=0,
                # Larger than a new model's, so that its predictions are not all alike.
                initializer_range=0.3,
            )
        )
        model.save_pretrained(directory)
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = chat_template
        tokenizer.save_pretrained(directory)


def tiny_tokenizer(vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on real text; what it was not trained on falls apart into bytes.

    Args:
        vocabulary: how many tokens, the 256 bytes and `END` among them.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([evaluation_text(None).text[:100_000]], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END
    )
