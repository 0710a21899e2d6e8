"""How unevenly a linear map stretches: functions of its singular values, given in descending order, [..., k].

LayerNorm, RMSNorm and softmax have null directions by construction (2, 1 and 1), so their plain condition number is
infinite or a ratio of rounding errors: the structural nullity q has to be known and left out. A branch without its
residual connection has none of them unless it ends in such a map.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Null directions that a map has by construction. LayerNorm kills the mean and the radius; its epsilon turns the
#: second null into a singular value of epsilon / sigma^3, hence q counts it all the same.
LAYER_NORM_NULLITY = 2
RMS_NORM_NULLITY = 1
SOFTMAX_NULLITY = 1


def condition_number(singular_values: Tensor) -> Tensor:
    """Condition number s_1 / s_k.

    Args:
        singular_values: descending, [..., k].

    Returns:
        [...]; inf where the smallest is zero.
    """
    return deflated_condition_number(singular_values, 0)


def deflated_condition_number(singular_values: Tensor, nullity: int) -> Tensor:
    """Condition number off the structural null space, s_1 / s_{k-q}.

    Args:
        singular_values: descending, [..., k].
        nullity: q, how many directions are null by construction: LayerNorm 2, RMSNorm 1, softmax 1.

    Returns:
        [...]; inf where further directions are null, NaN for a zero map.
    """
    return singular_values[..., 0] / smallest_on_range(singular_values, nullity)


def smallest_on_range(singular_values: Tensor, nullity: int) -> Tensor:
    """Smallest singular value off the structural null space, s_{k-q}.

    Args:
        singular_values: descending, [..., k].
        nullity: q, how many directions are null by construction.

    Returns:
        [...].

    Raises:
        ValueError: if nothing is left.
    """
    count = singular_values.shape[-1]
    if not 0 <= nullity < count:
        raise ValueError(f"{nullity} null directions of {count} singular values leave nothing")
    return singular_values[..., count - 1 - nullity]


def effective_condition_number(singular_values: Tensor, threshold: float) -> Tensor:
    """Condition number among the singular values that count, s_1 / min{s_i : s_i > tau s_1}.

    It depends on tau and is at most 1/tau, so tau has to be stated with it; `rounding_threshold` is the usual one.

    Args:
        singular_values: descending, [..., k].
        threshold: tau, relative to the largest.

    Returns:
        [...]; NaN for a zero map.
    """
    largest = singular_values[..., :1]
    counted = singular_values > threshold * largest
    smallest = torch.where(counted, singular_values, torch.inf).amin(dim=-1)
    return torch.where(counted.any(dim=-1), largest[..., 0] / smallest, torch.nan)


def rounding_threshold(rows: int, columns: int, dtype: torch.dtype) -> float:
    """Relative size below which a computed singular value is rounding: max(m, n) u (Golub & Van Loan, section 5.5.8).

    Args:
        rows: m.
        columns: n.
        dtype: of the computation.

    Returns:
        tau.
    """
    return max(rows, columns) * torch.finfo(dtype).eps


def numerical_rank(singular_values: Tensor, threshold: float) -> Tensor:
    """Number of singular values above tau s_1.

    Args:
        singular_values: descending, [..., k].
        threshold: tau, relative to the largest.

    Returns:
        Integers, [...].
    """
    return (singular_values > threshold * singular_values[..., :1]).sum(dim=-1)


def stable_rank(singular_values: Tensor) -> Tensor:
    """Stable rank ||J||_F^2 / ||J||_2^2, between 1 and the rank.

    Args:
        singular_values: descending, [..., k].

    Returns:
        [...]; NaN for a zero map.
    """
    # Relative values first: squares of large ones overflow.
    return (singular_values / singular_values[..., :1]).square().sum(dim=-1)


def largest_over_rms(largest: Tensor, frobenius: Tensor, count: int) -> Tensor:
    """Largest singular value over the root mean square of all of them, s_1 sqrt(k) / ||J||_F.

    1 for a multiple of an isometry, sqrt(k) for a map of rank one. It needs no smallest singular value, which no
    number of random products can give.

    Args:
        largest: s_1, [...].
        frobenius: ||J||_F, [...].
        count: k, the smaller of the numbers of rows and columns.

    Returns:
        [...].
    """
    return largest * math.sqrt(count) / frobenius


def log_spread(singular_values: Tensor, nullity: int) -> Tensor:
    """Standard deviation of log s_i off the structural null space; 0 is dynamical isometry.

    Pennington, Schoenholz & Ganguli 2017 (arXiv 1711.04735) ask for a singular value distribution concentrated at 1.

    Args:
        singular_values: descending, [..., k].
        nullity: q, how many directions are null by construction.

    Returns:
        [...]; not finite where further directions are null.
    """
    smallest_on_range(singular_values, nullity)
    kept = singular_values[..., : singular_values.shape[-1] - nullity]
    spread: Tensor = kept.log().std(dim=-1, correction=0)
    return spread
