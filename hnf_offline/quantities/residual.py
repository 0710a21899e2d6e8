"""The residual stream. `residual_stream` is a block's output, [batch, tokens, width], `residual_before` its input.

Both are tensors, or what was read of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.quantities.observed import Observed
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
def residual_rms(residual_stream: Tensor | Observed) -> Tensor:
    """Root mean square of the residual stream after a block.

    Returns:
        A scalar.
    """
    return Observed.of(residual_stream).mean_squares.mean().sqrt()


@quantity(
    "residual.growth",
    unit="1",
    formula="mean over sequences of rms(h_l) / rms(h_(l-1)), h the outputs of the block and of the block before",
    reference="Takase et al. 2023, Spike No More (arXiv 2312.16903), section 3; training-stability catalogue "
    "(source "
    "document), activation explosion",
    tier="forward",
    layers="every block but the first",
    reading="1 + 1 / (2 l) in a pre-norm model of equal blocks; a lasting factor above 1 in every block is "
    "exponential "
    "growth with depth.",
    cannot="Cannot say which sub-layer writes too much.",
)
def residual_growth(residual_before: Tensor | Observed, residual_stream: Tensor | Observed) -> Tensor:
    """Growth of the residual stream's root mean square over one block.

    Returns:
        A scalar.
    """
    after, before = (Observed.of(stream).mean_squares for stream in (residual_stream, residual_before))
    return (after / before).sqrt().mean()
