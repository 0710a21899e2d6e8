"""What is estimated where the saved optimizer state is missing. Nothing that warns or advises reads this family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.linalg.extremes import Extremes


def estimated_second_moment(mean_square: Tensor, scale: Tensor | float) -> Tensor:
    """Estimate Adam's second moment of one parameter from squared gradients at the checkpoint itself.

    Half of it follows the squared gradient entry by entry, half is spread evenly: a gradient that happens to be
    small now says little of the past. The scale gives all of it the size that logged gradient norms had.

    Args:
        mean_square: squared gradient of the parameter, the mean over training batches.
        scale: total of the second moment over total of the squared gradients, of the whole model.

    Returns:
        The estimate, shaped as `mean_square`; it has the same sum as scale * mean_square.
    """
    return scale * (mean_square + mean_square.mean()) / 2


@quantity(
    "estimate.stability_ratio",
    unit="1",
    formula="lambda_max(A^1/2 H A^1/2) with v_hat_i = c (g_i^2 + mean of g^2 over the tensor) / 2, g replayed, c such "
    "that sum_i v_hat_i is the moving average of the logged squared gradient norm",
    reference="definition; S: Cohen et al. 2022 (arXiv 2207.14484)",
    tier="stability",
    layers="the whole model, where Adam's state was not saved",
    reading="Stands for hessian.stability_ratio where that cannot be known. Read its course, not whether it passes 1.",
    cannot="Whether S passes 1. Neglects how the gradient's shape changed over its memory, and "
    "clipping that run.toml does not say. States hidden on the sample runs: estimate / S has median 1.37 "
    "(quartiles 1.19-1.62, "
    "range .55-5.9, rank correlation .76, n = 67) on spiky, 2.35 (1.95-3.86, .62-6.0, .22, n = 23) on steady; it was "
    "above 1 at 64 of 90 checkpoints, S at 15. On a Llama trained on minibatches .70-.98 (n = 4). The replayed "
    "gradient alone, without logged norms, was 380 times too high.",
)
def stability_ratio_estimate(estimated_spectrum: Extremes) -> float:
    """Estimate of the stability ratio S without optimizer state.

    Returns:
        The estimate; never certified.
    """
    return estimated_spectrum.largest.value
