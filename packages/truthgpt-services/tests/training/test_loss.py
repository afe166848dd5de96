"""The loss of a batch, beside that of transformers."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from truthgpt_services.training.batches import IGNORED
from truthgpt_services.training.loss import summed_loss

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
}
MODELS = {
    "Llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True)),
    # Their logits are changed after the output layer.
    "Gemma 2": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=2.0)),
    "Cohere": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.5)),
    "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2)),
}


@cache
def made(name: str) -> torch.nn.Module:
    """A model in float64."""
    torch.manual_seed(0)
    return MODELS[name]().double().eval()


def padded(lengths: list[int], hidden: int = 0) -> dict[str, torch.Tensor]:
    """A padded batch; of each row some tokens at its beginning are not to be predicted."""
    shape = (len(lengths), max(lengths))
    generator = torch.Generator().manual_seed(sum(lengths))
    ids = torch.randint(1, 40, shape, generator=generator)
    mask = (torch.arange(shape[1]) < torch.tensor(lengths)[:, None]).long()
    labels = torch.where(mask == 1, ids, IGNORED)
    labels[:, :hidden] = IGNORED
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def theirs(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss of transformers, which is a mean."""
    return model(**batch).loss * (batch["labels"][:, 1:] != IGNORED).sum()


def assert_close(ours: object, expected: object) -> None:
    """Within what float32 rounds, in which transformers computes its loss."""
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6, check_dtype=False)


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    """Of all parameters."""
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_of_a_padded_batch_is_that_of_transformers(name: str) -> None:
    """Leaving padding out of the output layer changes neither the loss nor a gradient."""
    model, batch = made(name), padded([9, 3, 2])
    ours, expected = summed_loss(model, batch), theirs(model, batch)
    assert_close(ours, expected)
    assert_close(gradients(model, ours), gradients(model, expected))


@given(st.lists(st.integers(2, 12), min_size=1, max_size=4), st.integers(0, 12))
def test_the_loss_is_that_of_transformers_whatever_is_predicted(
    lengths: list[int], hidden: int
) -> None:
    """Rows of any lengths, with any part of them to be predicted, have the loss they should."""
    model, batch = made("tied"), padded(lengths, hidden)
    if (batch["labels"][:, 1:] == IGNORED).all():
        assert summed_loss(model, batch) == 0
    else:
        assert_close(summed_loss(model, batch), theirs(model, batch))


def test_the_output_layer_computes_what_is_predicted() -> None:
    """No logits are made of padding, nor of the turns of a user."""
    model, given_to_it = made("Llama"), []
    model.lm_head.register_forward_hook(
        lambda _, inputs, output: given_to_it.append(output.flatten(0, -2).shape[0])
    )
    summed_loss(model, padded([9, 3, 2]))
    summed_loss(model, padded([9, 9, 9], hidden=6))
    summed_loss(model, padded([9, 9, 9]))
    # The last position of a row predicts nothing; that alone is not worth it.
    assert given_to_it == [8 + 2 + 1, 3 * 3, 27]


def test_a_hook_of_ones_own_stays() -> None:
    """What somebody has hung on the output layer is there afterwards, and nothing besides."""
    model, seen = made("Llama"), []
    model.lm_head.register_forward_pre_hook(lambda *_: seen.append(True))
    summed_loss(model, padded([9, 3, 2]))
    assert seen == [True]
    assert len(model.lm_head._forward_pre_hooks) == 1
