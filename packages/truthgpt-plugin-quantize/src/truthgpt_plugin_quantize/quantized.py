"""What all quantized linear layers have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from truthgpt_core.optimization import StoredMatrix
from truthgpt_plugin_quantize.kernels import Kernel
from truthgpt_plugin_quantize.layers import is_transposed, matrix

FEW_ROWS = 4
"""Up to this many rows of activations are multiplied by PyTorch's kernels for integers. With more,
making floating-point weights once and multiplying at full speed wins by far."""

CHUNK = 2**20
"""Weights that are rounded at once: what that needs besides stays small, and in a cache."""


class QuantizedLinear(nn.Module, ABC):
    """A linear layer whose weights are stored in fewer bits than they are computed with.

    A subclass registers its weights as buffers, in the dtypes that they keep whatever the
    model is changed to, and says how they are made and used.

    Args:
        in_features: length of the last dimension of its input.
        out_features: length of the last dimension of its output.
        bias: whether it has one, in `dtype`.
        dtype: of the bias.
        device: of everything.
        kernel: how it is computed on a CPU.
        group_size: how many neighbors of a row share a scale; 0 for the whole row.

    Attributes:
        is_transposed: whether it took the place of GPT-2's `Conv1D`, whose weights are (in, out).
    """

    scheme: ClassVar[str]
    qweight: Tensor
    scales: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
        kernel: Kernel,
        group_size: int = 0,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.group_size = group_size
        is_missing = kernel.name == "native" and kernel.matmul is None
        self.kernel = "dequantize" if is_missing else kernel.name
        self.matmul = kernel.matmul
        self.is_transposed = False
        self.bias = (
            nn.Parameter(torch.empty(out_features, dtype=dtype, device=device), requires_grad=False)
            if bias
            else None
        )

    @classmethod
    def empty_like(cls, module: Any, kernel: Kernel, group_size: int = 0) -> Self:
        """Make a layer of the same shape as another whose weights are still to be filled in."""
        out_features, in_features = matrix(module).shape
        layer = cls(
            in_features,
            out_features,
            bias=module.bias is not None,
            dtype=module.weight.dtype,
            device=module.weight.device,
            kernel=kernel,
            group_size=group_size,
        )
        layer.is_transposed = is_transposed(module)
        return layer

    @classmethod
    def from_linear(cls, module: Any, kernel: Kernel, group_size: int = 0) -> Self:
        """Quantize a layer: `nn.Linear`, or GPT-2's `Conv1D`."""
        layer = cls.empty_like(module, kernel, group_size)
        layer.take(matrix(module))
        if layer.bias is not None:
            layer.bias.data.copy_(module.bias.detach())
        return layer

    @abstractmethod
    def take(self, weight: Tensor) -> None:
        """Round weights, finite and of shape (out, in), into this layer's own."""

    @abstractmethod
    def dequantize(self, rows: Tensor | None = None) -> Tensor:
        """Return weights in float32.

        Args:
            rows: which rows, int64 of shape (n); all if None.

        Returns:
            Of shape (n, in), or (out, in).
        """

    def plain_weights(self) -> dict[str, Tensor]:
        """Return the tensors of a layer that computes the same, of the kind that this one was."""
        weight = self.dequantize()
        plain = {"weight": weight.t() if self.is_transposed else weight}
        return plain if self.bias is None else plain | {"bias": self.bias}

    def stored_matrix(self) -> StoredMatrix | None:
        """Return weights as they are stored; None if they are not integers."""
        return None

    def multiply_few(self, rows: Tensor) -> Tensor | None:
        """Multiply up to `FEW_ROWS` rows on a CPU with PyTorch's kernel for integers.

        Args:
            rows: of shape (rows, in).

        Returns:
            Of shape (rows, out), without the bias; None if there is no kernel for it.
        """
        return None

    def multiply_many(self, rows: Tensor) -> Tensor:
        """Multiply rows, of shape (rows, in), by floating-point weights made for the call."""
        return nn.functional.linear(rows, self.dequantize().to(rows.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer for `x` of shape (..., in_features), in the dtype of `x`."""
        rows = x.reshape(-1, self.in_features)
        # The kernels have no derivatives.
        exact = not rows.is_cpu or is_derived(rows)
        stored = None if exact or self.matmul is None else self.stored_matrix()
        out = None
        if self.matmul is not None and stored is not None:
            out = self.matmul(rows, stored)
        elif not exact and rows.shape[0] <= FEW_ROWS:
            out = self.multiply_few(rows)
        if out is None:
            out = self.multiply_many(rows)
        if self.bias is not None:
            out = out + self.bias.to(x.dtype)
        shaped: Tensor = out.view(*x.shape[:-1], self.out_features)
        return shaped

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # `model.to(dtype)` is for weights in floating point. These are part of how bits are
        # read: they move with the layer and keep their dtype.
        exact = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in exact.items():
            now = getattr(self, name)
            if now.dtype != before.dtype:
                setattr(self, name, before.to(now.device))
        return self

    def extra_repr(self) -> str:
        """Describe the layer in `print(model)`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, scheme={self.scheme}, kernel={self.kernel}, "
            f"group_size={self.group_size}"
        )


class QuantizedEmbedding(nn.Module):
    """An input embedding that reads the rows of a quantized output embedding.

    The two shared their weights before, and so they do now. It has none of its own: what
    is saved of it is the output embedding.

    Args:
        source: the output embedding.
        dtype: of what it returns.
    """

    def __init__(self, source: QuantizedLinear, dtype: torch.dtype) -> None:
        super().__init__()
        # Not as a module of this one: its weights would have two names.
        self._source = (source,)
        self._dtype = dtype

    @property
    def source(self) -> QuantizedLinear:
        """The output embedding."""
        return self._source[0]

    @property
    def num_embeddings(self) -> int:
        """How many tokens it knows."""
        return self.source.out_features

    def stored_matrix(self) -> StoredMatrix | None:
        """Return the weights of the output embedding as they are stored."""
        return self.source.stored_matrix()

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the rows of tokens, int64 of any shape, in one more dimension."""
        rows = self.source.dequantize(tokens.reshape(-1)).to(self._dtype)
        return rows.view(*tokens.shape, self.source.in_features)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # `model.to(dtype)` is for what floating-point numbers there are: here the result.
        self._dtype = fn(torch.empty(0, dtype=self._dtype)).dtype
        return self

    def extra_repr(self) -> str:
        """Describe it in `print(model)`."""
        return f"{self.num_embeddings}, {self.source.in_features}, scheme={self.source.scheme}"


def is_derived(rows: Tensor) -> bool:
    """Whether a derivative by activations may be asked for."""
    return rows.requires_grad and torch.is_grad_enabled()


def in_chunks(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield a matrix in float32, some rows at a time, each with where they are."""
    rows = max(1, CHUNK // max(1, weight.shape[1]))
    for begin in range(0, weight.shape[0], rows):
        where = slice(begin, min(begin + rows, weight.shape[0]))
        yield where, weight[where].float()
