"""Both ends of a spectrum, and how well they are known."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Eigenvalue:
    """One end of a spectrum.

    Attributes:
        value: the Ritz value (a Rayleigh quotient, so never beyond the true extreme).
        residual: ||M y - value y|| of the unit Ritz vector y; an eigenvalue lies within it.
        certified: residual within the tolerance, the value no longer moving, and nothing seen that casts doubt on
            its being the extreme one.
        error: estimate of the distance to that eigenvalue, min(residual, residual^2 / gap), never more than
            `residual`. The gap is read off the other Ritz values, so unlike `residual` it is no bound.
    """

    value: float
    residual: float
    certified: bool
    error: float = math.inf


@dataclass(frozen=True, slots=True)
class Extremes:
    """Both ends of a spectrum.

    Attributes:
        largest: the algebraically largest eigenvalue.
        smallest: the algebraically smallest.
        vector: unit Ritz vector of the largest, [dimension].
        products: products with the operator that were spent.
        asymmetry: largest |u'Mv - v'Mu| seen, relative to the larger end; rounding, and what differences instead of
            products add. NaN where it was not looked at.
        smallest_vector: unit Ritz vector of the smallest, where that end is larger in size and was looked for.
    """

    largest: Eigenvalue
    smallest: Eigenvalue
    vector: Tensor
    products: int
    asymmetry: float = math.nan
    smallest_vector: Tensor | None = None

    @property
    def dominant(self) -> tuple[Eigenvalue, Tensor]:
        """The end that is larger in size, of those that were looked for, and its Ritz vector."""
        if self.smallest_vector is not None:
            return self.smallest, self.smallest_vector
        return self.largest, self.vector
