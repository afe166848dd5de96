"""The operations that a model's own arithmetic takes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from truthgpt_core.event_system import EventType
from truthgpt_services.training.flops import count_flops, matmul_rate

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize("tied", [True, False])
def test_they_are_those_that_torch_counts(tied) -> None:
    """Torch, which counts attention of each token to each, comes to the same, so counted."""
    model = LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=tied))
    model.set_attn_implementation("eager")
    ids = torch.arange(20).view(2, 10)
    with FlopCounterMode(display=False) as counted:
        model(input_ids=ids).logits.sum().backward()
    flops = count_flops(model)
    assert flops is not None
    # What goes into the first layer are embeddings, which are trained: all gradients are taken.
    assert counted.get_total_flops() == 20 * flops.per_token + 2 * 10 * 10 * flops.per_pair


def test_documents_that_are_packed_do_not_see_each_other() -> None:
    """A token counts the tokens of its own document up to itself."""
    flops = count_flops(LlamaForCausalLM(LlamaConfig(**SMALL)))
    assert flops is not None
    batch = {"input_ids": torch.ones(1, 5, dtype=torch.int64)}
    whole = flops.of({**batch, "position_ids": torch.tensor([[0, 1, 2, 3, 4]])})
    parts = flops.of({**batch, "position_ids": torch.tensor([[0, 1, 0, 1, 2]])})
    assert whole == flops.of(batch) == 5 * flops.per_token + 15 * flops.per_pair
    assert parts == 5 * flops.per_token + 9 * flops.per_pair


def test_padding_takes_none() -> None:
    """A row that is padded counts as much as it would alone."""
    flops = count_flops(LlamaForCausalLM(LlamaConfig(**SMALL)))
    assert flops is not None
    ids = torch.ones(1, 5, dtype=torch.int64)
    padded = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 0, 0]])}
    assert flops.of(padded) == flops.of({"input_ids": ids[:, :3]})


def test_frozen_weights_need_no_gradient_of_their_own() -> None:
    """A weight that is not trained takes 4 operations for a token, and one that is 6."""
    model = LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=False))
    before, frozen = count_flops(model), model.model.layers[0].mlp.up_proj.weight
    frozen.requires_grad_(False)
    after = count_flops(model)
    assert before is not None
    assert after is not None
    assert before.per_token - after.per_token == 2 * frozen.numel()


def test_a_mixture_of_experts_is_not_counted() -> None:
    """Where a token does not go through every weight, nothing is said."""
    assert count_flops(MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=2))) is None


def test_the_rate_of_products_is_a_number_of_operations_in_a_second() -> None:
    """It is of this machine: more than a million, less than what any has."""
    rate = matmul_rate(torch.device("cpu"), torch.float32, size=128, seconds=0.01)
    assert 1e6 < rate < 1e18


def test_each_step_tells_its_operations(runs, tmp_path, events) -> None:
    """The event of a step has them, those of all its batches."""
    service = runs.configured(tmp_path, epochs=1, max_steps=2, gradient_accumulation_steps=2)
    service.run()
    flops = count_flops(runs.toy_model())
    assert flops is not None
    expected = [sum(flops.of(runs.toy_batch(at + n, 2)) for n in (0, 1)) for at in (0, 2)]
    steps = [event.data for event in events if event.type is EventType.TRAINING_STEP]
    assert [step["flops"] for step in steps] == expected
