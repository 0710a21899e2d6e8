"""The residual stream. `residual_stream` is a block's output, [batch, tokens, width], `residual_before` its input.

Both are tensors, or what was read of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.linalg.vectors import length
from hnf_offline.quantities.observed import Observed
from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from torch import Tensor

#: A square of this share of the stream's is known to five digits without subtracting the mean over tokens first.
_CLEAR_SHARE = 0.01


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


@quantity(
    "residual.token_spread",
    unit="1",
    formula="mean over sequences of ||X - 1 m'||_F / ||X||_F, X the block's output with a row for each token, m the "
    "mean of its rows",
    reference="Dong, Cordonnier & Loukas 2021, Attention is not all you need (arXiv 2103.03404): the "
    "residual res(X), there in the norm sqrt(||.||_1 ||.||_inf)",
    tier="forward",
    layers="every block",
    reading="Near 1: tokens have little in common; 0: all tokens of a sequence are the same, the collapse to rank one "
    "that attention alone brings about and skip connections prevent. Compare with its own past.",
    cannot="A direction that all tokens share lowers it while what differs is untouched; a few tokens with massive "
    "activations hold it up while all others agree.",
)
def token_spread(residual_stream: Tensor | Observed) -> Tensor:
    """How much of the residual stream differs between the tokens of a sequence, of its Frobenius norm.

    Returns:
        A scalar, in [0, 1]; NaN where a sequence's stream is 0.
    """
    seen = Observed.of(residual_stream)
    common = seen.common
    if common.device.type == "cpu" and seen.values.dtype.itemsize >= 4:
        # Of the mean alone, where what differs is not lost beside it.
        squares = 1 - length(common).square() / (common.shape[-1] * seen.mean_squares)
        if bool((squares > _CLEAR_SHARE).all()):
            return squares.sqrt().mean()
    apart = Observed(seen.values.reshape(len(common), -1, common.shape[-1]) - common.unsqueeze(1))
    return (apart.mean_squares / seen.mean_squares).sqrt().mean()
