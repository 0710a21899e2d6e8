"""The spectrum of the loss's Hessian as a whole, beyond its ends: trace, negative part, what lies past the edge.

`trace_estimate` is of H or a layer's diagonal block; `density` is the spectral density of H, `scaled_density` that
of A^1/2 H A^1/2 with the step metric A of `quantities.optimizer`. All are estimates from random vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from hnf_offline.linalg.density import Share, SpectralDensity
    from hnf_offline.linalg.trace import TraceEstimate


@quantity(
    "hessian.trace",
    unit="loss / parameter^2",
    formula="sum of all eigenvalues of H (of the layer's diagonal block H_ll); XTrace",
    reference="Epperly, Tropp & Webber 2024 (arXiv 2301.07825)",
    tier="curvature",
    layers="every layer, and the whole model as their sum where every layer is measured; on request (--traces)",
    reading="Curvature met by a random step; divided by the number of parameters it compares layers.",
    cannot="An estimate, low and high two standard errors away; positive and negative curvature cancel in it.",
)
def trace(trace_estimate: TraceEstimate) -> float:
    """Sum of the Hessian's eigenvalues.

    Returns:
        The estimate.
    """
    return trace_estimate.value


@quantity(
    "hessian.negative_share",
    unit="share",
    formula="sum of |lambda| over the negative eigenvalues of H / sum of |lambda| over all; Lanczos quadrature",
    reference="Ghorbani, Krishnan & Xiao 2019 (arXiv 1901.10159)",
    tier="curvature",
    layers="the whole model; on request (--density)",
    reading="1/2: as much negative curvature as positive; near 0: a bowl. Read how it moves over training.",
    cannot="Says nothing of how many eigenvalues are negative: most are too near to zero to have a sign.",
)
def negative_share(density: SpectralDensity) -> Share:
    """Negative part of the curvature's absolute sum.

    Returns:
        In [0, 1], with its standard error.
    """
    return density.negative_energy()


@quantity(
    "hessian.share_above_edge",
    unit="share",
    formula="share of the eigenvalues of A^1/2 H A^1/2 above 1; Lanczos quadrature",
    reference="Ubaru, Chen & Saad 2017 (SIAM J. Matrix Anal. Appl. 38); edge: Cohen et al. 2022 (arXiv 2207.14484)",
    tier="curvature",
    layers="the whole model; on request (--density)",
    reading="Times the number of parameters: how many directions are unstable at once.",
    cannot="A single direction is seen with an error as large as itself: whether there is one, S says better.",
)
def share_above_edge(scaled_density: SpectralDensity) -> Share:
    """Share of the directions in which the optimizer's steps overshoot.

    Returns:
        In [0, 1], with its standard error.
    """
    return scaled_density.share_above(1.0)
