"""Singular values of weight matrices.

`spectrum` is a `MatrixSpectra`: of one matrix, or of several at once, the leading singular values and what the rest of
them add up to. Each quantity returns a value a matrix with the interval that it lies in: where all singular values are
there, that of rounding; where only the leading ones are, what the remaining Frobenius norm allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
#: Entries of matrices of one shape that are held in float64 and solved together.
_HELD_ENTRIES = 1 << 22


@dataclass(frozen=True, slots=True)
class Bounded:
    """Values and the intervals that they lie in; NaN for a matrix that has no such value.

    Attributes:
        value: [...], the value; the lower end where only that is known.
        low: [...], lower end.
        high: [...], upper end, infinite where nothing bounds it.
    """

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MatrixSpectra:
    """Singular values of a matrix, or of several matrices with equally many of them.

    Attributes:
        values: [..., known], in descending order; all of them, or the leading ones, then each a lower bound.
        squared_norm: [...], ||W||_F^2, of all entries.
        dimension: min(rows, columns): how many singular values there are.
        error: [...], absolute error of `values`' squares: rounding of the Gram matrix.
    """

    values: NDArray[np.float64]
    squared_norm: NDArray[np.float64]
    dimension: int
    error: NDArray[np.float64]

    @property
    def whole(self) -> bool:
        """Whether all singular values are there."""
        return bool(self.values.shape[-1] == self.dimension)

    @property
    def rest(self) -> NDArray[np.float64]:
        """Sum of the squares of the singular values that are not there, [...]."""
        if self.whole:
            return np.zeros_like(self.squared_norm)
        rest: NDArray[np.float64] = self.squared_norm - np.square(self.values).sum(axis=-1)
        return np.maximum(0.0, rest)


def matrix_spectrum(matrix: Tensor, seed: int = 0) -> MatrixSpectra:
    """Compute the singular values of one matrix, as `matrix_spectra` does.

    Args:
        matrix: [rows, columns], finite.
        seed: of the sketch.

    Returns:
        The spectrum, `values` of shape [known].
    """
    ((_, found),) = matrix_spectra([matrix], seed)
    return MatrixSpectra(found.values[0], found.squared_norm[0], found.dimension, found.error[0])


def matrix_spectra(matrices: Sequence[Tensor], seed: int = 0) -> list[tuple[list[int], MatrixSpectra]]:
    """Compute singular values: all from the Gram matrix in float64, or of a large matrix the leading ones.

    A square of a singular value is off by about eps ||W||_2^2 min(m, n) at most, so singular values below
    1e-7 ||W||_2 are rounding. The leading ones of a large matrix are Ritz values of a randomised range after a few
    power steps: never above the true ones. Matrices of one shape are solved together.

    Args:
        matrices: [rows, columns] or [several, rows, columns] each, finite, on one device.
        seed: of the sketch.

    Returns:
        For each min(rows, columns) that there is: places in `matrices`, and the spectra of the matrices there, `values`
        of shape [places, known] or [places * several, known], where all with this minimum have equally many.

    Source: Golub & Van Loan 2013, section 8.6; Halko, Martinsson & Tropp 2011 (arXiv 0909.4061), algorithm 4.4.
    """
    shapes: dict[tuple[int, ...], list[int]] = {}
    for at, matrix in enumerate(matrices):
        shapes.setdefault((*matrix.shape[-2:], *matrix.shape[:-2]), []).append(at)
    # Dimension -> places, and their spectra.
    places: dict[int, list[int]] = {}
    solved: dict[int, list[MatrixSpectra]] = {}
    for (rows, columns, *_), own in shapes.items():
        dimension = min(rows, columns)
        places.setdefault(dimension, []).extend(own)
        lots = _in_lots([matrices[at] for at in own])
        solved.setdefault(dimension, []).extend(_solved(held, seed) for held in lots)
    return [(places[dimension], _joined(pieces)) for dimension, pieces in solved.items()]


def _in_lots(matrices: Sequence[Tensor]) -> Iterator[Tensor]:
    """[lot, rows, columns] each, float64, of at most as many entries as are held at once, unless it is one matrix."""
    import torch

    rows, columns = matrices[0].shape[-2:]
    together = max(1, _HELD_ENTRIES // max(1, rows * columns))
    lot: list[Tensor] = []
    for matrix in matrices:
        for piece in torch.split(matrix.reshape(-1, rows, columns), together):
            if lot and sum(map(len, lot)) + len(piece) > together:
                yield _widened(lot)
                lot = []
            lot.append(piece)
    yield _widened(lot)


def _widened(matrices: Sequence[Tensor]) -> Tensor:
    """One behind another, in float64; in one pass."""
    import torch

    if len(matrices) == 1:
        return matrices[0].double()
    shape = sum(map(len, matrices)), *matrices[0].shape[1:]
    return torch.cat(list(matrices), out=matrices[0].new_empty(shape, dtype=torch.float64))


def _gram(matrices: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The smaller of W'W and WW' of [matrices, rows, columns], and ||W||_F^2; of a sketch of large ones."""
    tall = matrices if matrices.shape[-2] >= matrices.shape[-1] else matrices.mT
    if tall.shape[-1] > EXACT_DIMENSION:
        squared_norm = tall.square().sum(dim=(-2, -1))
        sketch = _sketched(tall, seed)
        return sketch.mT @ sketch, squared_norm
    gram = tall.mT @ tall
    return gram, gram.diagonal(dim1=-2, dim2=-1).sum(dim=-1)


def _solved(matrices: Tensor, seed: int) -> MatrixSpectra:
    """Spectra of [matrices, rows, columns] in float64."""
    import torch

    dimension = min(matrices.shape[-2:])
    gram, norms = _gram(matrices, seed)
    squares = torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0)
    squares = squares[:, :LEADING] if dimension > EXACT_DIMENSION else squares
    # One transfer from the device.
    told = torch.cat([norms.unsqueeze(1), squares], dim=1).cpu().numpy()
    error = float(np.finfo(np.float64).eps) * dimension * told[:, 1]
    return MatrixSpectra(np.sqrt(told[:, 1:]), told[:, 0], dimension, error)


def _joined(pieces: Sequence[MatrixSpectra]) -> MatrixSpectra:
    """Spectra of one size, one after another."""
    if len(pieces) == 1:
        return pieces[0]
    values, norms, errors = (
        np.concatenate(each)
        for each in zip(*((one.values, one.squared_norm, one.error) for one in pieces), strict=True)
    )
    return MatrixSpectra(values, norms, pieces[0].dimension, errors)


def _sketched(tall: Tensor, seed: int) -> Tensor:
    """W'Q of large matrices W, Q an orthonormal basis of what the leading directions of W span."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(tall.shape[-1], LEADING + OVERSAMPLING, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(tall @ start.to(tall.device)).Q
    for _ in range(POWER_STEPS):
        basis = torch.linalg.qr(tall @ torch.linalg.qr(tall.mT @ basis).Q).Q
    sketch: Tensor = tall.mT @ basis  # Q'W: its singular values are at most those of W
    return sketch


def _root(square: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(np.maximum(0.0, square))


def around(value: NDArray[np.float64], error: NDArray[np.float64]) -> Bounded:
    """Bound values by their errors.

    Returns:
        value +- error.
    """
    return Bounded(value, value - error, value + error)


def _only_where(defined: NDArray[np.bool_], found: Bounded) -> Bounded:
    """NaN for the matrices that have no such value."""
    return Bounded(*(np.where(defined, one, np.nan) for one in (found.value, found.low, found.high)))


def undefined(spectrum: MatrixSpectra) -> Bounded:
    """Say that no matrix has such a value.

    Returns:
        NaN for every matrix.
    """
    return Bounded(*(np.full_like(spectrum.squared_norm, np.nan) for _ in range(3)))


def _of_square(value: NDArray[np.float64], error: NDArray[np.float64]) -> Bounded:
    """A singular value whose square is off by `error`."""
    return Bounded(value, _root(value**2 - error), np.sqrt(value**2 + error))


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
def sigma_max(spectrum: MatrixSpectra) -> Bounded:
    """Spectral norm of the matrix."""
    top = spectrum.values[..., 0]
    if spectrum.whole:
        return _of_square(top, spectrum.error)
    # What lies outside the sketch has at most the norm of the rest.
    return Bounded(top, top, np.sqrt(top**2 + spectrum.rest))


@quantity(
    "weight.sigma_median",
    unit="output / input",
    formula="the median singular value of W; the mean of the middle two of an even number",
    reference=f"definition; {_CATALOGUE} (singular value distribution)",
    tier="weights",
    layers="weight matrices of which all singular values are computed (up to 1024 rows or columns)",
    reading="The level of the bulk; sigma_max / sigma_median says how far the top stands out.",
    cannot="Hides both ends.",
)
def sigma_median(spectrum: MatrixSpectra) -> Bounded:
    """Median singular value; NaN where only the leading ones are known."""
    if not spectrum.whole:
        return undefined(spectrum)
    # The same one twice where their number is odd.
    middle = spectrum.values[..., [(spectrum.dimension - 1) // 2, spectrum.dimension // 2]]
    both = _of_square(middle, spectrum.error[..., None])
    return Bounded(*(one.mean(axis=-1) for one in (both.value, both.low, both.high)))


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
def sigma_min(spectrum: MatrixSpectra) -> Bounded:
    """Smallest singular value; NaN where only the leading ones are known."""
    if not spectrum.whole:
        return undefined(spectrum)
    return _of_square(spectrum.values[..., -1], spectrum.error)


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
def condition(spectrum: MatrixSpectra) -> Bounded:
    """Condition number of the matrix; NaN for a matrix of zeros."""
    top, last = spectrum.values[..., 0], spectrum.values[..., -1]
    smallest, highest = _root(last**2 - spectrum.error), np.sqrt(top**2 + spectrum.error)
    # What rounding could have made of the smallest one: at most this, so the condition is at least that.
    with np.errstate(divide="ignore", invalid="ignore"):
        low = _root(top**2 - spectrum.error) / np.sqrt(last**2 + spectrum.error)
        known = last > 0 if not spectrum.whole else smallest > 0
        high = highest / smallest if spectrum.whole else np.full_like(low, np.inf)
        value = np.where(known, top / last, low)
    return _only_where(top > 0, Bounded(value, low, np.where(known, high, np.inf)))


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
def stable_rank(spectrum: MatrixSpectra) -> Bounded:
    """Squared Frobenius norm over squared spectral norm; NaN for a matrix of zeros."""
    top = sigma_max(spectrum)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, value, high = (spectrum.squared_norm / one**2 for one in (top.high, top.value, top.low))
    return _only_where(top.low > 0, Bounded(value, low, high))


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
def effective_rank(spectrum: MatrixSpectra) -> Bounded:
    """Exponential of the entropy of the normalised singular values; NaN where only the leading ones are known."""
    values = spectrum.values
    total = values.sum(axis=-1)
    if not spectrum.whole:
        return undefined(spectrum)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = values / total[..., None]
        entropy = -(shares * np.log(np.where(values > 0, shares, 1.0))).sum(axis=-1)
        # Singular values below sqrt(error) are rounding: at most they add (or take) their own entropy.
        doubtful = np.count_nonzero(values**2 < spectrum.error[..., None], axis=-1)
        share = np.sqrt(spectrum.error) / total
        doubt = np.where(doubtful > 0, doubtful * share * (1 - np.log(share)), 0.0)
    found = Bounded(np.exp(entropy), np.exp(entropy - doubt), np.exp(entropy + doubt))
    return _only_where(total > 0, found)


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
def nuclear_norm(spectrum: MatrixSpectra) -> Bounded:
    """Sum of the singular values."""
    total = spectrum.values.sum(axis=-1)
    if spectrum.whole:
        # sqrt(s^2 + e) - s is at most the smaller of sqrt(e) and e / s.
        root = np.sqrt(spectrum.error)[..., None]
        least = np.maximum(spectrum.values, root)
        each = np.divide(spectrum.error[..., None], least, out=np.zeros_like(least), where=least > 0)
        return around(total, each.sum(axis=-1))
    # s_i <= r_i + sqrt(e_i) with the missing squares e_i, which sum to the rest; most where they are equal.
    return Bounded(total, total, total + np.sqrt(spectrum.rest * spectrum.dimension))
