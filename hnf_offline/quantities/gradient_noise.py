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
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


@dataclass(frozen=True, slots=True)
class GradientNoise:
    """Gradients of groups of rows, as far as their noise needs them.

    Attributes:
        sizes: [groups], sequences in each.
        products: [groups, groups], inner products of the groups' mean gradients.
        tokens_per_sequence: predicted tokens of a sequence, on average.
    """

    sizes: Floats
    products: Floats
    tokens_per_sequence: float

    def estimate(self, groups: NDArray[np.int64] | None = None) -> tuple[float, float]:
        """Estimate tr(Sigma) and |G|^2 without bias.

        E |g_i|^2 = |G|^2 + tr(Sigma) / n_i for the mean gradient g_i of n_i sequences; so with g that of all N,
        (sum_i n_i |g_i|^2 - N |g|^2) / (groups - 1) has mean tr(Sigma), and |g|^2 - tr(Sigma) / N has mean |G|^2.

        Args:
            groups: which groups to use, None for all.

        Returns:
            tr(Sigma) of a single sequence's gradient, and |G|^2.
        """
        chosen = np.arange(self.sizes.size) if groups is None else groups
        sizes, products = self.sizes[chosen], self.products[np.ix_(chosen, chosen)]
        total = sizes.sum()
        whole = float(sizes @ products @ sizes) / total**2
        trace = (float(sizes @ np.diag(products)) - total * whole) / (sizes.size - 1)
        return trace, whole - trace / total

    def error(self, of: int) -> float:
        """Half of the 95 % interval of an estimate, by leaving out one group at a time.

        Args:
            of: 0 for tr(Sigma), 1 for |G|^2.

        Returns:
            The error; infinite for fewer than three groups.

        Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 11 (jackknife).
        """
        count = self.sizes.size
        if count < 3:
            return float("inf")
        every = np.arange(count)
        without = np.array([self.estimate(np.delete(every, one))[of] for one in range(count)])
        spread = float(np.sum((without - without.mean()) ** 2)) * (count - 1) / count
        return _STUDENT[min(count - 1, len(_STUDENT)) - 1] * float(np.sqrt(spread))


@quantity(
    "gradient.variance_trace",
    unit="(loss / parameter)^2",
    formula="tr(Sigma) = (sum_i n_i |g_i|^2 - N |g|^2) / (groups - 1), g_i the mean gradient of n_i "
    "sequences, g of all N",
    reference=_SOURCE,
    tier="gradient",
    layers=_LAYERS,
    reading="How much the gradients of single sequences differ, all parameters together; falls as training "
    "settles.",
    cannot="Taken between replayed sequences at fixed weights; the data that are not replayed may differ more.",
)
def variance_trace(noise: GradientNoise) -> tuple[float, float, float]:
    """Trace of the covariance of a single sequence's gradient.

    Returns:
        Value, and lower and upper end of its interval.
    """
    value, error = noise.estimate()[0], noise.error(0)
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
    value, error = noise.estimate()[1], noise.error(1)
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
