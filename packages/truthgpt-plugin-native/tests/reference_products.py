"""Matrices of integers, and what products with them come to, in float64."""

from __future__ import annotations

import torch

from truthgpt_core.optimization import StoredMatrix
from truthgpt_plugin_native import library

BLOCK = 32


def random_matrix(rows: int, blocks: int, group: int, *, packed: bool) -> StoredMatrix:
    """Make integers; `group` is in blocks, and divides them."""
    columns = blocks * BLOCK
    if not packed:
        integers = torch.randint(-127, 128, (rows, columns), dtype=torch.int8)
        return StoredMatrix(integers, torch.rand(rows, blocks // group) / 100)
    groups = (rows, blocks // group)
    halves = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8)
    return StoredMatrix(halves, (torch.rand(groups) / 10).half(), (-torch.rand(groups)).half())


def weights_of(matrix: StoredMatrix) -> torch.Tensor:
    """Return what the integers stand for, in float64."""
    integers, least = matrix.weight, torch.zeros(1)
    if matrix.minima is not None:
        halves = matrix.weight.view(len(integers), -1, BLOCK)
        integers = torch.stack((halves & 15, halves >> 4), dim=2).view(len(integers), -1)
        least = matrix.minima.double().unsqueeze(-1)
    scales = matrix.scales.double().view(len(integers), -1, 1)
    grouped = integers.view(len(integers), scales.shape[1], -1).double()
    return (grouped * scales + least).view(len(integers), -1)


def grouped(x: torch.Tensor) -> torch.Tensor:
    """Return rows in float64, of shape (rows, groups, numbers that are rounded by one scale)."""
    group = 16 if library.load().engine_packs() else 8
    return x.double().view(len(x), x.shape[1] // group, group)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Return rows, each group of numbers rounded to 8 bits, in float64."""
    groups = grouped(x)
    steps = groups.abs().amax(-1, keepdim=True) / 127
    return (torch.where(steps > 0, (groups / steps).round(), 0.0) * steps).view(x.shape)
