"""The weights themselves. `weight` is one layer's parameters, flattened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from torch import Tensor


@quantity(
    "weight.nonfinite",
    unit="share",
    formula="share of the layer's parameters that are NaN or infinite",
    reference="definition",
    tier="forward",
    layers="every layer and the whole model",
    reading="Anything above 0 is a dead checkpoint; the first layer affected is where to look.",
    cannot="Cannot say which update wrote them when checkpoints are sparse.",
)
def nonfinite_share(weight: Tensor) -> Tensor:
    """Share of non-finite parameters.

    Returns:
        A scalar.
    """
    return (~weight.isfinite()).float().mean()
