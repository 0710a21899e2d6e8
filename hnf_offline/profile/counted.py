"""Hessians that count their products with vectors of the whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hnf_offline.linalg.differences import GradientDifferences
from hnf_offline.linalg.hessian import HessianGraph
from hnf_offline.profile.batch import MicroBatch, rows_of
from hnf_offline.profile.effort import spend


class CountedGraph(HessianGraph):
    """Exact products; those with vectors of layers are counted by who asks for them."""

    def __init__(self, batches: Sequence[MicroBatch], *arguments: Any, keep: bool) -> None:
        """As `HessianGraph`, of the loss on some micro-batches."""
        super().__init__(*arguments, keep=keep)
        self._rows = rows_of(batches)
        spend("graph", self._rows)

    def product(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Multiply by a vector of the whole model.

        Returns:
            The product restricted to the same parameters, by name.
        """
        spend("whole product", self._rows)
        return super().product(vectors)

    def products(self, requests: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Multiply by several vectors; what graphs cost that are built again is counted here, the products are not.

        Returns:
            One product a request, restricted to the parameters that the request names.
        """
        if not self._keep:
            spend("graph", self._rows)
        return super().products(requests)


class CountedDifferences(GradientDifferences):
    """Differences of whole gradients."""

    def __init__(self, batches: Sequence[MicroBatch], *arguments: Any) -> None:
        """As `GradientDifferences`, of the loss on some micro-batches."""
        super().__init__(*arguments)
        self._rows = rows_of(batches)
        spend("gradient", self._rows)

    def product(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Multiply by a vector of the whole model.

        Returns:
            The product restricted to the same parameters, by name.
        """
        spend("gradient", self._rows)
        return super().product(vectors)
