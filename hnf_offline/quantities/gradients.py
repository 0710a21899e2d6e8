"""The gradient of the replayed loss. `gradient` is one layer's (or the whole model's), flattened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from torch import Tensor


@quantity(
    "gradient.norm",
    unit="loss / parameter",
    formula="||g_l||_2 of the mean replayed loss",
    reference="definition; training-stability catalogue (source document), gradient norm tracking",
    tier="gradient",
    layers="every layer and the whole model",
    reading="Compare a layer with its own past; it is at its minimum just before an edge-of-stability spike.",
    cannot="Cannot warn of those spikes, and names the wrong layer when a step size is at fault.",
)
def gradient_norm(gradient: Tensor) -> Tensor:
    """Euclidean norm of the gradient.

    Returns:
        A scalar.
    """
    return gradient.square().sum().sqrt()
