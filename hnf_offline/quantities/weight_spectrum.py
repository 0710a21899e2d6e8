"""Singular values of weight matrices.

`spectrum` is a `MatrixSpectrum`: the leading singular values and what the rest of them add up to. Each quantity
returns a value with the interval that it lies in: where all singular values are there, the interval is that of
rounding; where only the leading ones are, it is what the remaining Frobenius norm allows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_CATALOGUE = "training-stability catalogue (source document), spectral analysis of weight matrices"
_LAYERS = "every weight matrix"
#: Up to so many rows or columns, whichever are fewer, all singular values are computed.
EXACT_DIMENSION = 1024
#: Singular values of larger matrices, and the vectors that the sketch has beyond them.
LEADING, OVERSAMPLING, POWER_STEPS = 64, 16, 3
#: Entries of the Gram matrices that are held before they are solved.
_GRAM_ENTRIES = 1 << 22


@dataclass(frozen=True, slots=True)
class Bounded:
    """A value and the interval that it lies in.

    Attributes:
        value: the value; the lower end where only that is known.
        low: lower end.
        high: upper end, infinite where nothing bounds it.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class MatrixSpectrum:
    """Singular values of a matrix.

    Attributes:
        values: in descending order; all of them, or the leading ones, then each a lower bound.
        squared_norm: ||W||_F^2, of all entries.
        dimension: min(rows, columns): how many singular values there are.
        error: absolute error of `values`' squares: rounding of the Gram matrix, or what the sketch may have missed.
    """

    values: tuple[float, ...]
    squared_norm: float
    dimension: int
    error: float

    @property
    def whole(self) -> bool:
        """Whether all singular values are there."""
        return len(self.values) == self.dimension

    @property
    def rest(self) -> float:
        """Sum of the squares of the singular values that are not there."""
        return 0.0 if self.whole else max(0.0, self.squared_norm - sum(one * one for one in self.values))


def matrix_spectrum(matrix: Tensor, seed: int = 0) -> MatrixSpectrum:
    """Compute the singular values of one matrix, as `matrix_spectra` does.

    Args:
        matrix: [rows, columns], finite.
        seed: of the sketch.

    Returns:
        The spectrum.
    """
    return matrix_spectra([matrix], seed)[0]


def matrix_spectra(matrices: Sequence[Tensor], seed: int = 0) -> list[MatrixSpectrum]:
    """Compute singular values: all from the Gram matrix in float64, or of a large matrix the leading ones.

    A square of a singular value is off by about eps ||W||_2^2 min(m, n) at most, so singular values below
    1e-7 ||W||_2 are rounding. The leading ones of a large matrix are Ritz values of a randomised range after a few
    power steps: never above the true ones. Gram matrices of one size are solved together.

    Args:
        matrices: [rows, columns] each, finite, on one device.
        seed: of the sketch.

    Returns:
        The spectra, in order.

    Source: Golub & Van Loan 2013, section 8.6; Halko, Martinsson & Tropp 2011 (arXiv 0909.4061), algorithm 4.4.
    """
    import torch

    grams: dict[int, list[tuple[int, Tensor]]] = {}
    norms: dict[int, Tensor] = {}
    found: dict[int, MatrixSpectrum] = {}

    def solve(dimension: int) -> None:
        waiting = grams.pop(dimension, [])
        if waiting:
            squares = torch.linalg.eigvalsh(torch.stack([gram for _, gram in waiting])).flip(-1).clamp_min(0)
            squares = squares[:, :LEADING] if dimension > EXACT_DIMENSION else squares
            told = torch.cat([torch.stack([norms[at] for at, _ in waiting]).unsqueeze(1), squares], dim=1)
            for (at, _), (norm, *values) in zip(waiting, told.tolist(), strict=True):
                size = min(matrices[at].shape)
                rounding = torch.finfo(torch.float64).eps * size * (values[0] if values else 0.0)
                found[at] = MatrixSpectrum(tuple(map(math.sqrt, values)), norm, size, rounding)

    for at, matrix in enumerate(matrices):
        wide = matrix.double()
        wide = wide.T if wide.shape[0] < wide.shape[1] else wide
        if wide.shape[1] > EXACT_DIMENSION:
            norms[at] = wide.square().sum()
            wide = _sketched(wide, seed)
        gram = wide.T @ wide
        norms.setdefault(at, gram.diagonal().sum())
        size = min(matrix.shape)
        grams.setdefault(size, []).append((at, gram))
        if len(grams[size]) * gram.numel() >= _GRAM_ENTRIES:
            solve(size)
    for size in list(grams):
        solve(size)
    return [found[at] for at in range(len(matrices))]


def _sketched(wide: Tensor, seed: int) -> Tensor:
    """W'Q of a large matrix W, Q an orthonormal basis of what its leading directions span."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(wide.shape[1], LEADING + OVERSAMPLING, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(wide @ start.to(wide.device)).Q
    for _ in range(POWER_STEPS):
        basis = torch.linalg.qr(wide @ torch.linalg.qr(wide.T @ basis).Q).Q
    sketch: Tensor = wide.T @ basis  # Q'W: its singular values are at most those of W
    return sketch


def _root(square: float) -> float:
    return math.sqrt(max(0.0, square))


def _around(value: float, error: float) -> Bounded:
    return Bounded(value, value - error, value + error)


@quantity(
    "weight.sigma_max",
    unit="output / input",
    formula="s_1(W), the largest singular value",
    reference=f"definition; {_CATALOGUE}",
    tier="weights",
    layers=_LAYERS,
    reading="The most that the layer stretches anything; growth over steps drives attention logits and outputs.",
    cannot="Whether any input has that direction: see the layer map's sigma_max at tier full.",
)
def sigma_max(spectrum: MatrixSpectrum) -> Bounded:
    """Spectral norm of the matrix."""
    top = spectrum.values[0]
    if spectrum.whole:
        return Bounded(top, _root(top * top - spectrum.error), math.sqrt(top * top + spectrum.error))
    # What lies outside the sketch has at most the norm of the rest.
    return Bounded(top, top, math.sqrt(top * top + spectrum.rest))


@quantity(
    "weight.sigma_median",
    unit="output / input",
    formula="the median singular value of W",
    reference=f"definition; {_CATALOGUE} (singular value distribution)",
    tier="weights",
    layers="weight matrices of which all singular values are computed (up to 1024 rows or columns)",
    reading="The level of the bulk; sigma_max / sigma_median says how far the top stands out.",
    cannot="Hides both ends.",
)
def sigma_median(spectrum: MatrixSpectrum) -> Bounded | None:
    """Median singular value; None where only the leading ones are known."""
    if not spectrum.whole:
        return None
    middle = spectrum.values[len(spectrum.values) // 2]
    return Bounded(middle, _root(middle**2 - spectrum.error), math.sqrt(middle**2 + spectrum.error))


@quantity(
    "weight.sigma_min",
    unit="output / input",
    formula="s_n(W), n = min(rows, columns), the smallest singular value",
    reference=f"definition; {_CATALOGUE}",
    tier="weights",
    layers="weight matrices of which all singular values are computed (up to 1024 rows or columns)",
    reading="Its interval reaches 0 where it is below what the arithmetic resolves (1e-7 of sigma_max).",
    cannot="Random square matrices have one near 0 by themselves.",
)
def sigma_min(spectrum: MatrixSpectrum) -> Bounded | None:
    """Smallest singular value; None where only the leading ones are known."""
    if not spectrum.whole:
        return None
    last = spectrum.values[-1]
    return Bounded(last, _root(last**2 - spectrum.error), math.sqrt(last**2 + spectrum.error))


@quantity(
    "weight.condition",
    unit="1",
    formula="kappa(W) = s_1 / s_n, n = min(rows, columns); from below where s_n is not computed",
    reference=f"definition; {_CATALOGUE}, condition number monitoring",
    tier="weights",
    layers=_LAYERS,
    reading="Above 1e7 (no upper end) the matrix is singular as far as the arithmetic tells; compare with its "
    "own past.",
    cannot="A square random matrix of width n has about n; only inputs along the smallest directions feel it.",
)
def condition(spectrum: MatrixSpectrum) -> Bounded | None:
    """Condition number of the matrix; None for a matrix of zeros."""
    top, last = spectrum.values[0], spectrum.values[-1]
    if not top > 0:
        return None
    # What rounding could have made of the smallest one: at most this, so the condition is at least that.
    low = _root(top**2 - spectrum.error) / math.sqrt(last**2 + spectrum.error)
    if not spectrum.whole:
        return Bounded(top / last if last > 0 else low, low, math.inf)
    smallest = _root(last**2 - spectrum.error)
    if not smallest > 0:
        return Bounded(low, low, math.inf)
    return Bounded(top / last, low, math.sqrt(top**2 + spectrum.error) / smallest)


@quantity(
    "weight.stable_rank",
    unit="1",
    formula="||W||_F^2 / ||W||_2^2",
    reference=f"Rudelson & Vershynin 2007 (J. ACM 54(4)), section 1; {_CATALOGUE}",
    tier="weights",
    layers=_LAYERS,
    reading="1: one direction does everything; a fall over steps is rank collapse.",
    cannot="Looks at the top direction against all: a spectrum can lose its lower half unseen.",
)
def stable_rank(spectrum: MatrixSpectrum) -> Bounded | None:
    """Squared Frobenius norm over squared spectral norm; None for a matrix of zeros."""
    top = sigma_max(spectrum)
    if not top.low > 0:
        return None
    low, value, high = (spectrum.squared_norm / (one * one) for one in (top.high, top.value, top.low))
    return Bounded(value, low, high)


@quantity(
    "weight.effective_rank",
    unit="1",
    formula="exp(-sum p_i log p_i), p_i = s_i / sum_j s_j",
    reference="Roy & Vetterli 2007 (EUSIPCO), definition 1",
    tier="weights",
    layers=_LAYERS,
    reading="How many directions the spectrum is spread over; min(rows, columns) for an orthogonal matrix.",
    cannot="Falls when anything stands out, not only when directions are lost.",
)
def effective_rank(spectrum: MatrixSpectrum) -> Bounded | None:
    """Exponential of the entropy of the normalised singular values; None where only the leading ones are known."""
    values = np.array(spectrum.values)
    total = float(values.sum())
    if not spectrum.whole or not total > 0:
        return None
    shares = values[values > 0] / total
    entropy = -float(shares @ np.log(shares))
    # Singular values below sqrt(error) are rounding: at most they add (or take) their own entropy.
    doubtful = int(np.count_nonzero(values * values < spectrum.error))
    share = math.sqrt(spectrum.error) / total
    doubt = doubtful * share * (1 - math.log(share)) if doubtful else 0.0
    return Bounded(math.exp(entropy), math.exp(entropy - doubt), math.exp(entropy + doubt))


@quantity(
    "weight.nuclear_norm",
    unit="output / input",
    formula="||W||_* = sum_i s_i",
    reference=f"definition; {_CATALOGUE}",
    tier="weights",
    layers=_LAYERS,
    reading="Falls against the Frobenius norm when the matrix loses rank.",
    cannot="Grows with the scale of the weights as well as with their rank.",
)
def nuclear_norm(spectrum: MatrixSpectrum) -> Bounded:
    """Sum of the singular values."""
    values = np.array(spectrum.values)
    total = float(values.sum())
    if spectrum.whole:
        # sqrt(s^2 + e) - s is at most the smaller of sqrt(e) and e / s.
        root = math.sqrt(spectrum.error)
        return _around(total, float((spectrum.error / np.maximum(values, root)).sum()) if root else 0.0)
    # s_i <= r_i + sqrt(e_i) with the missing squares e_i, which sum to the rest; most where they are equal.
    return Bounded(total, total, total + math.sqrt(spectrum.rest * spectrum.dimension))


#: Fewer eigenvalues in the tail say nothing of a power law.
FEWEST_IN_TAIL = 10
#: Lengths of the tail that are tried, from the fewest to all, evenly in their logarithm.
MOST_TAILS = 100


@lru_cache(maxsize=64)
def _tails(size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """1 ... size, and the last places of the tails that are tried."""
    lengths = np.geomspace(FEWEST_IN_TAIL, size, MOST_TAILS).round().astype(np.int64)
    return np.arange(1, size + 1), np.unique(lengths) - 1


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
def tail_exponent(spectrum: MatrixSpectrum) -> Bounded | None:
    """Exponent of a power law fitted to the largest eigenvalues of W'W; None where there are too few."""
    squares = np.square(np.array(spectrum.values))
    squares = squares[squares > spectrum.error]
    if not spectrum.whole or squares.size < 2 * FEWEST_IN_TAIL:
        return None
    logs = np.log(squares)
    sizes, tried = _tails(logs.size)
    spread = np.cumsum(logs) - sizes * logs
    tried = tried[spread[tried] > 0]
    if not tried.size:
        return None  # all equal: no tail at all
    alphas = 1 + sizes[tried] / spread[tried]
    # Of the k largest, i lie above the (i+1)-th; the power law says how many should.
    exponents = (1 - alphas)[:, None] * (logs - logs[tried][:, None])
    step = 1 / sizes[tried][:, None]
    apart = np.exp(np.minimum(exponents, 0.0)) - sizes * step
    outside = sizes > sizes[tried][:, None]
    distances = np.where(outside, 0.0, np.maximum(np.abs(apart), np.abs(apart + step))).max(axis=1)
    best = int(np.argmin(distances))
    alpha = float(alphas[best])
    return _around(alpha, 1.96 * (alpha - 1) / math.sqrt(sizes[tried[best]]))
