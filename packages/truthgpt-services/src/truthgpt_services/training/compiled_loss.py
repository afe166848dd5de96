"""The loss of a batch in compiled code.

The blocks of a model are alike, so one of them is compiled and the others use its code. Training
is nearly as fast as with a model that is compiled as a whole, and compiling does not take longer
the more blocks there are. Marking the blocks for torch to compile once within the whole
(`torch.compiler.nested_compile_region`) gave wrong gradients on a CPU with torch 2.13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn

from truthgpt_services.training.loss import sum_of_losses, summed_loss

Tensors = Mapping[str, torch.Tensor]
Loss = Callable[[Tensors], torch.Tensor]


def compiled_as_a_whole(model: Any) -> Loss:
    """Return what computes the loss of a batch as one piece of code.

    Args:
        model: a causal language model of transformers.
    """

    def loss(batch: Tensors) -> torch.Tensor:
        return summed_loss(model, batch)

    return _compiled(loss)


def compiled_by_blocks(model: Any, blocks: list[nn.Module]) -> Loss:
    """Return what computes the loss of a batch with one code for all blocks, and one for the loss.

    What is between them, such as the output layer, is called as it is.

    Args:
        model: a causal language model of transformers.
        blocks: of the model, as `repeated_blocks` finds them.
    """
    forward = type(blocks[0]).forward
    code, of_whole = _compiled(forward), _compiled(sum_of_losses)

    def loss(batch: Tensors) -> torch.Tensor:
        with _called_instead(blocks, code):
            return summed_loss(model, batch, of_whole=of_whole)

    return loss


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """Find the blocks of a model that can share one code.

    Args:
        model: or what a training backend has put around it.

    Returns:
        They, in order; none if they are of several classes, if what one of them does has been
        replaced, or if they are run again in the backward pass (activation checkpointing), which
        has to do what the forward pass did.
    """
    if any(getattr(each, "gradient_checkpointing", False) for each in model.modules()):
        return []
    # The outermost come first: the experts of a block are a list of their own.
    for each in model.modules():
        if isinstance(each, nn.ModuleList) and len(each) > 1:
            blocks = list(each)
            alike = len({type(block) for block in blocks}) == 1
            return blocks if alike and not any("forward" in vars(it) for it in blocks) else []
    return []


@contextmanager
def _called_instead(blocks: list[nn.Module], code: Callable[..., Any]) -> Iterator[None]:
    # Only while it trains: what evaluates the model has other shapes, and wants no code for them.
    for block in blocks:
        vars(block)["forward"] = MethodType(code, block)
    try:
        yield
    finally:
        for block in blocks:
            del vars(block)["forward"]


def _compiled(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that compiles itself when it is first called, and for each new shape."""

    def own(*arguments: Any, **named: Any) -> Any:
        return call(*arguments, **named)

    # torch counts by code object, over all models of a process, how often it compiled again.
    own.__code__ = own.__code__.replace()
    return torch.compile(own)
