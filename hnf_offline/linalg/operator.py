"""Symmetric operators known only by their products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class SymmetricOperator(Protocol):
    """A symmetric matrix that can be multiplied by a vector.

    Attributes:
        dimension: number of rows.
    """

    @property
    def dimension(self) -> int:
        """Number of rows."""
        ...

    def __call__(self, vector: Tensor) -> Tensor:
        """Multiply.

        Returns:
            The product, shaped as `vector` ([dimension]).
        """
        ...


@dataclass(frozen=True, slots=True)
class Scaled:
    """D M D for a symmetric operator M and a diagonal D.

    Attributes:
        operator: M.
        diagonal: D, [dimension].
    """

    operator: SymmetricOperator
    diagonal: Tensor

    @property
    def dimension(self) -> int:
        """Number of rows."""
        return self.operator.dimension

    def __call__(self, vector: Tensor) -> Tensor:
        """Multiply.

        Returns:
            D M D v, [dimension].
        """
        return self.diagonal * self.operator(self.diagonal * vector)


def dense(operator: SymmetricOperator, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Build the matrix by one product per column: for tests and tiny blocks.

    Returns:
        [dimension, dimension].
    """
    identity = torch.eye(operator.dimension, dtype=dtype)
    return torch.stack([operator(column) for column in identity], dim=1)
