"""How a layer says that it keeps its weights as integers, for engines that compute with those."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """A matrix of shape (out, in) whose rows are cut into groups that share a scale.

    Attributes:
        weight: a contiguous tensor. int8 of shape (out, in): weight = integer * scale. Or uint8 of
            shape (out, in / 2), two integers from 0 to 15 in a byte: weight = integer * scale +
            minimum. Of each 64 columns, 32 bytes are stored: byte j has column j in its low half
            and column j + 32 in its high half.
        scales: of int8 weights float32 of shape (out) or (out, groups), of uint8 float16 of shape
            (out, groups).
        minima: of uint8 weights, like the scales; else None.
    """

    weight: Any
    scales: Any
    minima: Any = None


@runtime_checkable
class StoresMatrix(Protocol):
    """A module, a linear layer or an embedding, that an optimization has put into a model."""

    def stored_matrix(self) -> StoredMatrix | None:
        """Return its weights as they are stored; None if they are stored in another way.

        The tensors are the module's own, and must not be changed by an engine. A bias
        is not among them: it is the module's parameter `bias`.
        """


StoredMatmul = Callable[[Any, StoredMatrix], Any]
"""Called as `matmul(x, matrix)` with `x` floating point of shape (rows, in), on the CPU.

Returns `x @ matrix.T` of shape (rows, out), in the dtype of `x`. It may round `x`, and has no
derivatives."""
