"""The loss of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from truthgpt_services.training.batches import IGNORED, Batch

WORTH_LEAVING_OUT = 1 / 8
"""Which part of a batch has to be without a label for logits to be made of the rest alone."""


def sum_of_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the sum of the losses of predictions.

    Args:
        logits: floating point, of shape (..., vocabulary).
        labels: int64 of shape (predictions); `IGNORED` where there is no loss.

    Returns:
        A scalar in nats, in float32 or the dtype of the logits if that is wider.
    """
    logits = logits.flatten(0, -2)
    return functional.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)),
        labels,
        ignore_index=IGNORED,
        reduction="sum",
    )


def summed_loss(
    model: Any,
    batch: Batch,
    *,
    of_whole: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = sum_of_losses,
) -> torch.Tensor:
    """Return the sum of the losses of all tokens that have a label.

    Where many have none (padding, the turns of a user), the output layer is given only those
    positions that the loss is made of: it is a fifth of all arithmetic in a small model, and
    its logits are the largest tensor there is.

    Args:
        model: a causal language model of transformers.
        batch: on its device; without `attention_mask` it holds packed documents, which
            transformers tells apart by `position_ids` that begin at 0 again.
        of_whole: what sums the losses of logits of all positions, whose shape is that of the
            batch. How many others there are differs from batch to batch.

    Returns:
        A scalar in nats, in float32 or what the model computes in if that is wider.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    # The labels are shifted and not the logits, which are many times larger and would be copied.
    labels = functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED).flatten()
    wanted = _worth_choosing(labels)
    with _given_to_output_layer(model, wanted, batch["labels"].shape):
        # With a cache, transformers does not look for packed documents.
        logits = model(**inputs, use_cache=False).logits
    if wanted is not None and logits.ndim == 2:
        return sum_of_losses(logits, labels[wanted])
    return of_whole(logits, labels)


def _worth_choosing(labels: torch.Tensor) -> torch.Tensor | None:
    # Code that is compiled is for one shape, and how many labels there are differs.
    if torch.compiler.is_compiling():
        return None
    wanted = (labels != IGNORED).nonzero().flatten()
    worth = 0 < len(wanted) <= (1 - WORTH_LEAVING_OUT) * len(labels)
    return wanted if worth else None


@contextmanager
def _given_to_output_layer(
    model: Any, wanted: torch.Tensor | None, shape: torch.Size
) -> Iterator[None]:
    """Have the output layer compute some positions of a batch alone.

    Args:
        model: or what a training backend has put around it.
        wanted: numbers of positions, counted over all rows; None for all, as it is for a model
            that has no output layer.
        shape: of the batch.
    """
    layer: Any = getattr(getattr(model, "module", model), "get_output_embeddings", lambda: None)()
    if wanted is None or not isinstance(layer, nn.Module):
        yield
        return

    def choose(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *others = arguments
        # Some models call it with more, or for something else besides.
        return (hidden.flatten(0, 1)[wanted], *others) if hidden.shape[:2] == shape else arguments

    handle = layer.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()
