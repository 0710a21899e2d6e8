"""The residual stream. `residual_stream` is a block's output, [batch, tokens, width]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from torch import Tensor


@quantity(
    "residual.rms",
    unit="activation",
    formula="sqrt(mean h^2) of the block's output",
    reference="Takase et al. 2023, Spike No More (arXiv 2312.16903), section 3",
    tier="forward",
    layers="every block",
    over_batches="rms",
    reading="Slow growth over depth is normal; growth over steps is a drift that leads by hundreds of steps.",
    cannot="Cannot name the sub-layer that writes too much.",
)
def residual_rms(residual_stream: Tensor) -> Tensor:
    """Root mean square of the residual stream after a block.

    Returns:
        A scalar.
    """
    return residual_stream.square().mean().sqrt()
