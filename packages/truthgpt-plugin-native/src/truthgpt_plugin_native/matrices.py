"""Matrices as the compiled code sees them."""

from __future__ import annotations

import torch
from torch import Tensor

from truthgpt_plugin_native.library import Matrix

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3}
"""`Kind` of matrix.hpp, by the dtype of the weights."""


def columns_of(weight: Tensor) -> int:
    """Return how many columns a matrix has: of uint8, two are in a byte."""
    return weight.shape[1] * (2 if weight.dtype == torch.uint8 else 1)


def group_of(weight: Tensor, scales: Tensor | None) -> int:
    """Return how many columns of a row share a scale."""
    groups = scales.shape[1] if scales is not None and scales.dim() == 2 else 1
    return columns_of(weight) // groups


def describe(
    weight: Tensor,
    scales: Tensor | None = None,
    minima: Tensor | None = None,
    bias: Tensor | None = None,
) -> Matrix:
    """Return a matrix as the compiled code sees it. Its tensors have to be kept alive.

    Args:
        weight: contiguous, of shape (out, in) and a dtype of `KINDS`; uint8 as in `StoredMatrix`.
        scales: contiguous, as in `StoredMatrix`.
        minima: likewise.
        bias: float32 of shape (out); None for none.
    """
    return Matrix(
        *(None if each is None else each.data_ptr() for each in (weight, scales, minima, bias)),
        weight.shape[0],
        columns_of(weight),
        KINDS[weight.dtype],
        group_of(weight, scales),
    )
