"""What enters LayerNorm and RMSNorm. `norm_scale` is the standard deviation (or RMS) of each token, [tokens]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from torch import Tensor


@quantity(
    "norm.inverse_sigma",
    unit="1 / activation",
    formula="max over tokens of 1 / sigma(x) (LayerNorm) or 1 / rms(x) (RMSNorm)",
    reference="Jacobian of LayerNorm: (I - 11'/n - x x'/n) / sigma, singular values 1/sigma and two zeros",
    tier="forward",
    layers="every LayerNorm and RMSNorm",
    over_batches="max",
    reading="The factor by which this norm stretches gradients that pass back through it; growth means x shrinks.",
    cannot="Ignores the learned gain; a big value is harmless where the branch before it is small as well.",
)
def norm_inverse_sigma(norm_scale: Tensor) -> Tensor:
    """Largest inverse scale over the tokens.

    Returns:
        A scalar.
    """
    return norm_scale.reciprocal().amax()
