"""Curvature of the replayed loss in the parameters: raw, and as the optimizer sees it.

`spectrum` holds the extreme eigenvalues of H (whole model or one layer's diagonal block), `scaled_spectrum`
those of A^1/2 H A^1/2 with the step metric A of `quantities.optimizer`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hnf_offline.linalg.vectors import inner
from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.linalg.lanczos import Extremes


@quantity(
    "hessian.stability_ratio",
    unit="1",
    formula="S = lambda_max(A^1/2 H A^1/2), A = eta (1-b1) / (2 (1+b1)) / (sqrt(v_hat)+eps) (Adam) "
    "or eta / (2 (1+b)) (SGD with momentum b)",
    reference="Cohen et al. 2021, 2022 (arXiv 2103.00065, 2207.14484); Bai et al. 2026 (arXiv 2506.04805)",
    tier="stability",
    layers="the whole model and every layer (the layer's diagonal block)",
    bands=(0.8, 1.0),
    reading="1 is the edge of stability. A smooth climb towards 1 after a spike announces the next one.",
    cannot="Runs can live at 1 for hundreds of steps; with strong minibatch noise or in deep nets 1 is not the edge.",
)
def stability_ratio(scaled_spectrum: Extremes) -> float:
    """Largest eigenvalue of the Hessian in units of the optimizer's stability limit.

    Returns:
        S.
    """
    return scaled_spectrum.largest.value


@quantity(
    "hessian.lambda_max",
    unit="loss / parameter^2",
    formula="largest eigenvalue of H (of the layer's diagonal block H_ll)",
    reference="definition; Lanczos: Golub & Van Loan, Matrix Computations, chapter 10",
    tier="curvature",
    layers="the whole model and every layer",
    reading="Sharpness. For SGD it sets the largest stable rate; under Adam only the preconditioned one does.",
    cannot="Under Adam it does not warn; levels of different layers do not compare.",
)
def lambda_max(spectrum: Extremes) -> float:
    """Largest eigenvalue of the Hessian.

    Returns:
        The eigenvalue.
    """
    return spectrum.largest.value


@quantity(
    "hessian.lambda_min",
    unit="loss / parameter^2",
    formula="smallest (most negative) eigenvalue of H (of H_ll)",
    reference="definition",
    tier="curvature",
    layers="the whole model and every layer",
    reading="Negative: a direction of descent that the gradient may not see yet; its size against lambda_max matters.",
    cannot="Not an instability by itself: saddles are where training lives.",
)
def lambda_min(spectrum: Extremes) -> float:
    """Smallest eigenvalue of the Hessian.

    Returns:
        The eigenvalue.
    """
    return spectrum.smallest.value


@quantity(
    "hessian.gradient_direction",
    unit="1",
    formula="g' A H g / g' g",
    reference="Bai et al. 2026 (arXiv 2506.04805): lambda_grad of the preconditioned Hessian over 2 / eta",
    tier="stability",
    layers="the whole model",
    reading="Sustained above 1: the gradient itself now points along an unstable direction.",
    cannot="Jumps from checkpoint to checkpoint; a single crossing says little.",
)
def gradient_direction(gradient: Tensor, hessian_gradient: Tensor, step_metric: Tensor) -> Tensor:
    """Preconditioned curvature along the gradient, in units of the stability limit.

    Returns:
        A scalar.
    """
    return inner(gradient, step_metric * hessian_gradient) / inner(gradient, gradient)


@quantity(
    "hessian.update_direction",
    unit="1",
    formula="u' H u / u' A^-1 u with the optimizer's next update u (m_hat / (sqrt(v_hat)+eps) for Adam)",
    reference="Rayleigh quotient of A^1/2 H A^1/2 along the update; compare Kalra et al. 2026 (arXiv 2601.16979)",
    tier="stability",
    layers="the whole model",
    reading="Never above S. Near S the updates themselves oscillate along the sharpest direction.",
    cannot="Says that oscillation has begun rather than that it will: 5-10 steps of lead at most.",
)
def update_direction(update: Tensor, hessian_update: Tensor, step_metric: Tensor) -> Tensor:
    """Preconditioned curvature along the optimizer's update, in units of the stability limit.

    Returns:
        A scalar.
    """
    return inner(update, hessian_update) / inner(update, update / step_metric)


@quantity(
    "hessian.product_error",
    unit="1",
    formula="||w - H_ll v|| / ||H_ll v||, w the difference of gradients that stands for H_ll v, v near the top of "
    "the layer's spectrum; measured once a run",
    reference="definition; step of the difference: Dennis & Schnabel 1983, section 5.4",
    tier="curvature",
    layers="every layer",
    reading="Enters the layer's error bars; the column batch says how its products were made. 0 for exact ones.",
    cannot="Measured on two rows of one checkpoint, without the step metric. A layer whose products are less symmetric "
    "than they may be off, at any checkpoint, gets exact ones.",
)
def product_error(product_error: float) -> float:
    """Relative error of the Hessian products that a layer's curvature was computed with.

    Returns:
        The error.
    """
    return product_error


@quantity(
    "hessian.unstable_mass",
    unit="share",
    formula="sum over the layer's parameters of v_i^2, v the unit top eigenvector of A^1/2 H A^1/2",
    reference="definition: squared components of the unit top eigenvector, summed by layer",
    tier="stability",
    layers="every layer",
    reading="Where the least stable direction lives. Read the change against the run's own past, not the level.",
    cannot="Names where, not why: scaled weights show up downstream of the layer that was scaled.",
)
def unstable_mass(unstable_direction: Tensor) -> Tensor:
    """Share of the top preconditioned eigenvector that lies in one layer.

    Returns:
        A scalar in [0, 1]; the layers' values sum to 1.
    """
    return unstable_direction.square().sum()


@quantity(
    "hessian.unstable_mass_change",
    unit="share",
    formula="m_l(c) - median of m_l over earlier checkpoints outside spikes, m_l = hessian.unstable_mass of layer l",
    reference="definition; the baseline is causal: earlier checkpoints only",
    tier="stability",
    layers="every layer; made of the measured shares, not measured itself",
    reading="Where the least stable direction moved to: the layer with the largest rise went wrong first.",
    cannot="Unknown before three quiet checkpoints; names where, not why.",
)
def unstable_mass_change(unstable_mass_now: Any, unstable_mass_baseline: Any) -> Any:
    """Change of a layer's share of the unstable direction against the run's own baseline.

    Args:
        unstable_mass_now: shares, numbers or arrays.
        unstable_mass_baseline: baselines of the same shape.

    Returns:
        The difference of the shares, in [-1, 1].
    """
    return unstable_mass_now - unstable_mass_baseline
