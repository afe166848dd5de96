"""Whether a step changed a model, seen from its tensors and modules alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from truthgpt_services.models.changes import compare, part_names, parts_in_memory, parts_on_disk
from truthgpt_services.models.loading import load_model
from truthgpt_services.models.rollback import Rollback


def nothing(model):
    return model


def one_bit(model):
    model.model.norm.weight.data.view(torch.int32)[0] ^= 1


def dtype(model):
    model.lm_head.weight.data = model.lm_head.weight.data.bfloat16()


def shape(model):
    model.lm_head.weight.data = model.lm_head.weight.data.view(-1)


def kind(model):
    class Other(nn.Linear):
        """Computes otherwise."""

    model.lm_head.__class__ = Other


def removed(model):
    del model.model.layers[1]


def buffer(model):
    model.model.rotary_emb.inv_freq.neg_()


CHANGES = [
    (nothing, "0 of {tensors} tensors and 0 of {modules} modules differ"),
    (one_bit, "1 of {tensors} tensors and 0 of {modules} modules differ"),
    (dtype, "1 of {tensors} tensors and 0 of {modules} modules differ"),
    (shape, "1 of {tensors} tensors and 0 of {modules} modules differ"),
    (kind, "0 of {tensors} tensors and 1 of {modules} modules differ"),
    (removed, "9 of {tensors} tensors and 13 of {modules} modules differ"),
    (buffer, "1 of {tensors} tensors and 0 of {modules} modules differ"),
]


@pytest.mark.parametrize(("change", "note"), CHANGES)
@pytest.mark.parametrize("where", ["in memory", "on disk"])
def test_every_change_is_seen_and_counted(tiny, change, note, where):
    """A single bit, a dtype, a shape, a class; from memory and from the files alike."""
    model = load_model(tiny)
    before = parts_in_memory(model) if where == "in memory" else parts_on_disk(tiny, None)
    tensors, modules = len(before.tensors), len(before.modules)
    change(model)
    found = compare(before, model)
    assert found.changed is (change is not nothing)
    assert found.note == note.format(tensors=tensors, modules=modules)


def test_files_are_compared_in_the_dtype_that_was_asked_for(tiny):
    """A model that is loaded as bfloat16 was not changed by that."""
    model = load_model(tiny, dtype=torch.bfloat16)
    assert not compare(parts_on_disk(tiny, torch.bfloat16), model).changed
    assert compare(parts_on_disk(tiny, None), model).changed


def test_a_tied_matrix_is_there_under_both_names(tied):
    """Whichever of them an optimization names."""
    model = load_model(tied)
    assert {"lm_head.weight", "model.embed_tokens.weight", "lm_head", ""} <= part_names(model)
    model.lm_head.weight.data.neg_()
    assert compare(parts_on_disk(tied, None), model).note.startswith("2 of ")


ODD = {
    "scalar": lambda: torch.tensor(3.0),
    "empty": lambda: torch.zeros(0),
    "NaN": lambda: torch.tensor([float("nan")]),
    "transposed": lambda: torch.ones(4, 4).t(),
    "bool": lambda: torch.ones(2, dtype=torch.bool),
    "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "conjugated": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "meta": lambda: torch.empty(3, device="meta"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_every_kind_of_tensor_can_be_compared_and_put_back(make):
    """NaN is equal to itself; what has unusual memory is no reason to fail."""
    module = nn.Module()
    module.register_buffer("odd", make())
    parts, rollback = parts_in_memory(module), Rollback(module)
    assert not compare(parts, module).changed
    module.odd = torch.ones(17)
    assert compare(parts, module).changed
    rollback.restore()
    assert not compare(parts, module).changed
