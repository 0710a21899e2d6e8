"""Noise of the gradient between sequences. `noise` is a `GradientNoise`: gradients of groups of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_SOURCE = "McCandlish et al. 2018 (arXiv 1812.06162), appendix A.1"
_LAYERS = "the whole model; four replayed sequences or more"
#: Student's t at 95 % for 1, 2, ... degrees of freedom.
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36)


@dataclass(frozen=True, slots=True)
class GradientNoise:
    """Mean gradients g_i of disjoint groups of sequences, held against the mean gradient g of all.

    Attributes:
        sizes: [groups], n_i, sequences in each; at least two groups.
        total: N, all replayed sequences, those of no group included.
        squared_distances: [groups], |g_i - g|^2.
        projections: [groups], <g_i - g, g>.
        squared_norm: |g|^2.
        tokens_per_sequence: predicted tokens of a sequence, on average.
    """

    sizes: Floats
    total: float
    squared_distances: Floats
    projections: Floats
    squared_norm: float
    tokens_per_sequence: float

    @property
    def shares(self) -> Floats:
        """1/n_i - 1/N: the variance of g_i - g in units of a single sequence's."""
        return np.asarray(1 / self.sizes - 1 / self.total)

    @property
    def student(self) -> float:
        """Student's t of the groups' degrees of freedom."""
        return _STUDENT[min(self.sizes.size - 1, len(_STUDENT)) - 1]


@quantity(
    "gradient.variance_trace",
    unit="(loss / parameter)^2",
    formula="tr(Sigma) = mean_i |g_i - g|^2 / (1/n_i - 1/N), g_i the mean gradient of a group of n_i "
    "sequences, g that of "
    "all N",
    reference=_SOURCE,
    tier="gradient",
    layers=_LAYERS,
    reading="How much the gradients of single sequences differ, all parameters together; falls as training "
    "settles.",
    cannot="Taken between replayed sequences at fixed weights; the data that are not replayed may differ more.",
)
def variance_trace(noise: GradientNoise) -> tuple[float, float, float]:
    """Trace of the covariance of a single sequence's gradient, without bias.

    Returns:
        Value, and lower and upper end of its 95 % interval over the groups.
    """
    each = noise.squared_distances / noise.shares
    value = float(each.mean())
    error = noise.student * float(each.std(ddof=1)) / each.size**0.5
    return value, max(0.0, value - error), value + error


@quantity(
    "gradient.squared_mean",
    unit="(loss / parameter)^2",
    formula="|G|^2 = |g|^2 - tr(Sigma) / N, g the mean gradient of all N sequences",
    reference=_SOURCE,
    tier="gradient",
    layers=_LAYERS,
    reading="The part of the squared gradient norm that is not noise; about 0 where the replayed rows cannot "
    "tell a direction.",
    cannot="Unbiased, so it may come out below 0 where noise is all there is.",
)
def squared_mean_gradient(noise: GradientNoise) -> tuple[float, float, float]:
    """Squared norm of the true gradient.

    Returns:
        Value, and lower and upper end of its interval.
    """
    value = noise.squared_norm - variance_trace(noise)[0] / noise.total
    # |g|^2 scatters about its mean by 2 sqrt(G' Sigma G / N), and G' Sigma G shows in the projections.
    along = float(np.mean(noise.projections**2 / noise.shares))
    error = noise.student * 2 * (along / noise.total) ** 0.5
    return value, value - error, value + error


@quantity(
    "gradient.noise_scale",
    unit="sequences",
    formula="B_simple = tr(Sigma) / |G|^2, both unbiased",
    reference=f"{_SOURCE} and equation 2.9; the training-stability catalogue (source document) has it upside down",
    tier="gradient",
    layers=_LAYERS,
    reading="A batch of this size has as much noise as signal: far below it more sequences a batch pay, far "
    "above they do "
    "not.",
    cannot="A ratio of two estimates: where |G|^2 may be 0 it has no upper end and only the lower one is told.",
)
def noise_scale(noise: GradientNoise) -> tuple[float, float, float]:
    """Simple gradient noise scale.

    Returns:
        Value (the lower end where |G|^2 is not above 0), and lower and upper end of its interval.
    """
    (trace, low_trace, high_trace), (square, low_square, high_square) = (
        variance_trace(noise),
        squared_mean_gradient(noise),
    )
    low = low_trace / high_square if high_square > 0 else 0.0
    return (
        trace / square if square > 0 else low,
        low,
        high_trace / low_square if low_square > 0 else float("inf"),
    )


@quantity(
    "gradient.critical_batch",
    unit="tokens",
    formula="B_crit ~ B_simple T, T the predicted tokens of a sequence",
    reference=f"{_SOURCE}, section 2.3 (B_crit ~ B_noise ~ B_simple); tr(H) / |g|^2 of the training-stability "
    "catalogue "
    "(source document) is no batch size",
    tier="gradient",
    layers=_LAYERS,
    reading="Near this batch size twice the batch saves as many steps as it costs data; compare with the "
    "run's own.",
    cannot="B_simple takes the Hessian for the identity; the source finds it right up to a small factor.",
)
def critical_batch(noise: GradientNoise) -> tuple[float, float, float]:
    """Critical batch size by the simple noise scale.

    Returns:
        Value, and lower and upper end of its interval.
    """
    value, low, high = (noise.tokens_per_sequence * one for one in noise_scale(noise))
    return value, low, high
