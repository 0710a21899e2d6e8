"""Power laws in the spectra of weight matrices: does a heavy tail stand out of the bulk?

`spectrum` is a `MatrixSpectra`, as in `weight_spectrum`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from hnf_offline.quantities.registry import quantity
from hnf_offline.quantities.weight_spectrum import Bounded, MatrixSpectra, around, undefined

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Fewer eigenvalues in the tail say nothing of a power law.
FEWEST_IN_TAIL = 10
#: Lengths of the tail that are tried, from the fewest to all, evenly in their logarithm.
MOST_TAILS = 100
#: The tails are compared in so many pieces: short ones need not look at all eigenvalues.
_PIECES = 4
#: Numbers that the comparison of several spectra with their tails may hold at once.
_COMPARED_TOGETHER = 1 << 16


@dataclass(frozen=True, slots=True)
class _Tails:
    """The tails of a spectrum that are tried.

    Attributes:
        last: [tails], place of the smallest eigenvalue in each.
        reached: [tails, eigenvalues], share of the tail that lies no lower; 1 beyond it.
        above: [tails, eigenvalues], share of the tail that lies higher; 1 beyond it.
    """

    last: NDArray[np.int64]
    reached: NDArray[np.float32]
    above: NDArray[np.float32]


@lru_cache(maxsize=64)
def _tails(size: int) -> _Tails:
    lengths = np.unique(np.geomspace(FEWEST_IN_TAIL, size, MOST_TAILS).round().astype(np.int64))
    count = np.arange(size + 1)
    shares = np.minimum(1.0, count / lengths[:, None]).astype(np.float32)
    return _Tails(lengths - 1, shares[:, 1:], shares[:, :-1])


@quantity(
    "weight.tail_exponent",
    unit="1",
    formula="alpha = 1 + k / sum_(i <= k) ln(x_i / x_k), x the eigenvalues of W'W in descending order, k >= "
    "10 where the "
    "Kolmogorov-Smirnov distance to the power law is least; interval: alpha +- 1.96 (alpha - 1) / sqrt(k)",
    reference="Clauset, Shalizi & Newman 2009 (arXiv 0706.1062), section 3; for weights Martin & Mahoney 2021 "
    "(arXiv 1810.01075)",
    tier="weights",
    layers="weight matrices with at least 20 singular values, all of them computed",
    reading="Random weights have a large one (6 and more); 2 to 4 is what the source finds in well-trained layers.",
    cannot="Any spectrum gets a number, power law or not; with tens of eigenvalues the choice of k adds error "
    "of its own.",
)
def tail_exponent(spectrum: MatrixSpectra) -> Bounded:
    """Exponent of a power law fitted to the largest eigenvalues of W'W; NaN where there are too few."""
    if not spectrum.whole:
        return undefined(spectrum)
    squares = np.square(spectrum.values)
    sure = np.count_nonzero(squares > spectrum.error[..., None], axis=-1)
    alpha, error = (np.full(sure.shape, np.nan) for _ in range(2))
    for size in np.unique(sure):
        if size >= 2 * FEWEST_IN_TAIL:
            alike = sure == size
            alpha[alike], error[alike] = _fitted_tails(np.log(squares[alike][:, :size]))
    return around(alpha, error)


def _fitted_tails(logs: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exponents of [matrices, eigenvalues], in descending order, and half the width of their intervals."""
    size = logs.shape[1]
    tails = _tails(size)
    lengths = tails.last + 1
    # sum_(i <= k) ln(x_i / x_k). Where all are equal there is no tail at all.
    spread = (np.cumsum(logs, axis=-1) - np.arange(1, size + 1) * logs)[:, tails.last]
    alphas = 1 + lengths / np.where(spread > 0, spread, np.nan)
    # Half the digits are enough to tell which k is best.
    levels, exponents = (logs - logs[:, :1]).astype(np.float32), (1 - alphas).astype(np.float32)
    distances = np.empty_like(exponents)
    for some in np.array_split(np.arange(lengths.size), _PIECES):
        together = max(1, _COMPARED_TOGETHER // max(1, some.size * lengths[some].max(initial=0)))
        for first in range(0, len(logs), together):
            own = slice(first, first + together)
            distances[own, some] = _distances(levels[own], exponents[own][:, some], tails, some)
    best = np.argmin(np.where(np.isnan(alphas), np.inf, distances), axis=-1)
    alpha = np.take_along_axis(alphas, best[:, None], axis=-1)[:, 0]
    return alpha, 1.96 * (alpha - 1) / np.sqrt(lengths[best])


def _distances(
    levels: NDArray[np.float32], exponents: NDArray[np.float32], tails: _Tails, some: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Kolmogorov-Smirnov distances of [matrices, some tails] to their power laws."""
    longest = tails.last[some].max() + 1
    # The share that the law puts above each eigenvalue; 1, as the tail's own, of those beyond the tail.
    law = levels[:, None, :longest] - levels[:, tails.last[some], None]
    law *= exponents[..., None]
    np.exp(np.minimum(law, 0.0, out=law), out=law)
    apart = tails.reached[some, :longest] - law
    np.maximum(apart, np.subtract(law, tails.above[some, :longest], out=law), out=apart)
    distance: NDArray[np.float32] = apart.max(axis=-1)
    return distance
