"""FSDP2: a model, and the state of its optimizer, in parts on all processes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from truthgpt_plugin_accelerate.errors import BackendError


def shard(
    model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, processes: int
) -> None:
    """Divide a model among all processes, in place.

    Each of its blocks is gathered when it computes, and divided again. Accelerate itself does
    that on GPUs only, so torch's `fully_shard` is called here, on all devices alike.

    Args:
        model: of transformers, which says what its blocks are.
        optimizer: of its parameters; it gets the divided ones. It has taken no step.
        device: where the model is.
        processes: how many there are.

    Raises:
        BackendError: the optimizer has taken a step.
    """
    if optimizer.state:
        raise BackendError(
            "The optimizer has taken steps before its parameters were divided among processes",
            hint="Configure the training service before the first step.",
        )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    mesh = init_device_mesh(device.type, (processes,))
    divided = [*_blocks(model), model]
    for module in divided:
        fully_shard(module, mesh=mesh)
    if device.type == "cpu":
        for module in divided:
            assert isinstance(module, FSDPModule)
            # gloo cannot take means; they are divided afterwards.
            module.set_force_sum_reduction_for_comms(True)
    parameters = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [parameters[names[id(each)]] for each in group["params"]]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor, on the CPU if this process holds only a part of it."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def part(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a tensor that is divided as another is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(
        tensor.to(like.device),
        like.device_mesh,
        like.placements,
        # Every process has all of it: there is nothing to send.
        src_data_rank=None,
    )


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of a model; an adapter such as LoRA's may be around it."""
    kinds = {
        kind
        for module in model.modules()
        for kind in getattr(module, "_no_split_modules", ()) or ()
    }
    for module in model.modules():
        if type(module).__name__ in kinds:
            yield module
