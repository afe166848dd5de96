"""Models that say after each token what a function says, whatever stood before."""

from __future__ import annotations

import torch


def follow(model, next_token):
    """Let a model say after each token what a permutation says."""
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embedding = model.model.embed_tokens.weight
        embedding.copy_(torch.nn.functional.normalize(embedding, dim=-1))
        for token, row in enumerate(embedding):
            model.lm_head.weight[next_token(token)] = row
    return model


def in_fives(token):
    """Return the next of five tokens, which come again and again."""
    return token // 5 * 5 + (token + 1) % 5


def ever_new(token):
    """Return a token so that all come before one comes again."""
    return (token + 111) % 320


def save(model, tokenizer, directory):
    """Save a model as transformers does."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
