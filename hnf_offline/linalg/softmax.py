"""The Jacobian of softmax, diag(p) - p p': both ends of its spectrum in closed form, up to one scalar equation each.

It is symmetric and positive semi-definite, with p's constant direction as its null space. Its other eigenvalues
interlace the probabilities, p_(i+1) <= lambda_i <= p_(i), and solve sum_i p_i^2 / (p_i - lambda) = 1 (secular
equation of a rank-one change: Golub & Van Loan, Matrix Computations, section 8.4.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Halvings of an interval between two probabilities: more than a float64 has bits.
_HALVINGS = 60


@dataclass(frozen=True, slots=True)
class SoftmaxSpectrum:
    """Singular values of softmax Jacobians, the structural zero left out.

    Attributes:
        largest: [...].
        smallest: [...]; of two keys it is the largest as well.
        rms: root mean square of all but the structural zero, [...].
    """

    largest: Tensor
    smallest: Tensor
    rms: Tensor


def softmax_spectrum(probabilities: Tensor, keys: Tensor) -> SoftmaxSpectrum:
    """Find both ends of the spectrum of diag(p) - p p' on the keys that are not masked.

    Args:
        probabilities: p, rows that sum to 1, zero at masked keys, float64, [..., n].
        keys: how many keys are not masked, at least 2, [...].

    Returns:
        The ends, each exact to rounding.
    """
    ordered = probabilities.sort(dim=-1, descending=True).values
    last = keys.long()[..., None] - 1
    lowest, before = ordered.gather(-1, last), ordered.gather(-1, last - 1)
    squares = ordered.square()
    # Sums of positive terms only: of a saturated row, differences of sums near 1 would leave nothing.
    others = torch.cat([ordered[..., 1:].sum(-1, keepdim=True), 1 - ordered[..., 1:]], dim=-1)
    following = squares.flip(-1).cumsum(-1).flip(-1)[..., 1:]
    frobenius = (squares * others.square()).sum(-1) + 2 * (squares[..., :-1] * following).sum(-1)
    return SoftmaxSpectrum(
        _root_between(ordered, ordered[..., 1:2], ordered[..., :1])[..., 0],
        _root_between(ordered, lowest, before)[..., 0],
        (frobenius / (keys - 1)).sqrt(),
    )


def _root_between(ordered: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Halve the interval in which 1 - sum p^2 / (p - lambda) falls from +inf to -inf.

    Written as 0 = sum_i p_i (1 - p_i / (p_i - lambda)) = -lambda sum_i p_i / (p_i - lambda): the sum without the
    factor has the same root, and no digits are lost where lambda is tiny.

    Returns:
        lambda.
    """
    for _ in range(_HALVINGS):
        middle = low.sqrt() * high.sqrt()  # probabilities differ by orders of magnitude
        # Keys with p = 0 add nothing; at lambda = p itself the interval has shrunk to a point.
        terms = torch.where(ordered > 0, ordered / (ordered - middle), torch.zeros_like(ordered))
        below_root = terms.nan_to_num(0.0, 0.0, 0.0).sum(-1, keepdim=True) < 0
        low, high = torch.where(below_root, middle, low), torch.where(below_root, high, middle)
    return low.sqrt() * high.sqrt()
