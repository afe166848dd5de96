"""Where weights lie in memory."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from truthgpt_plugin_native.pages import let_go, move_to_large_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of Linux alone")


class Tied(nn.Module):
    """An embedding and an output embedding that share their weights, of 4 MB."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4096, 256)
        self.head = nn.Linear(256, 4096, bias=False)
        self.norm = nn.LayerNorm(256)
        self.head.weight = self.embedding.weight


def test_a_model_whose_weights_were_moved_is_the_same_and_can_be_trained() -> None:
    """Parameters are the same objects with the same values, tied ones are tied."""
    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parameters = list(model.parameters())
    before = [each.detach().clone() for each in parameters]
    address = model.head.weight.data_ptr()
    move_to_large_pages(model)
    assert model.head.weight.data_ptr() != address
    assert model.head.weight is model.embedding.weight
    assert all(now is then for now, then in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(*each) for each in zip(parameters, before, strict=True))
    model.head(model.embedding(torch.arange(9))).square().sum().backward()
    optimizer.step()
    assert not torch.equal(parameters[0], before[0])


def test_weights_are_moved_once() -> None:
    """A second engine of a model finds them where the first one has them."""
    model = Tied()
    move_to_large_pages(model)
    address = model.head.weight.data_ptr()
    move_to_large_pages(model)
    assert model.head.weight.data_ptr() == address


def test_what_was_let_go_comes_back_from_its_file(tmp_path: Path) -> None:
    """Memory holds it no longer, until it is read."""
    weight = mapped(tmp_path)
    assert int(weight.sum()) == weight.numel()
    assert resident(tmp_path) >= weight.nbytes
    let_go([weight])
    assert resident(tmp_path) < weight.nbytes // 2
    assert int(weight.sum()) == weight.numel()


def test_what_was_changed_is_not_let_go(tmp_path: Path) -> None:
    """Its file does not have it."""
    weight = mapped(tmp_path)
    weight[7] = 5
    let_go([weight])
    assert int(weight.sum()) == weight.numel() + 4


def test_what_is_of_no_file_is_not_let_go() -> None:
    """It would be gone."""
    weight = torch.ones(2**22, dtype=torch.int8)
    let_go([weight])
    assert int(weight.sum()) == weight.numel()


def mapped(folder: Path) -> Tensor:
    """A tensor of ones of 4 MB that is mapped from a file."""
    save_file({"weight": torch.ones(2**22, dtype=torch.int8)}, folder / "a.safetensors")
    with safe_open(folder / "a.safetensors", "pt") as file:
        tensor: Tensor = file.get_tensor("weight")
    return tensor


def resident(folder: Path) -> int:
    """Bytes of the file that are in the memory of this process."""
    pattern = rf"^\S+ .*{re.escape(str(folder))}.*$(?:\n\w+:.*$)*?\nRss: +(\d+) kB$"
    about = Path("/proc/self/smaps").read_text()
    return sum(int(each[1]) * 1024 for each in re.finditer(pattern, about, re.MULTILINE))
