"""Krylov spaces that others drive, so that many of them can step together.

The Lanczos process with full reorthogonalisation (Golub & Van Loan, Matrix Computations, 4th ed., chapter 10),
turned inside out: a space says which unit vector it wants multiplied next, whoever drives it makes the products of
all spaces in one go, and hands the images back. The projected matrix Q'MQ is kept whole instead of its three
diagonals: it costs nothing beside the reorthogonalisation, lets a second vector join (band Lanczos: Ruhe 1979), and
keeps the residuals true where products are differences and not quite symmetric.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hnf_offline.linalg.extremes import Eigenvalue, Extremes
from hnf_offline.linalg.stopping import StopRule

#: Rows that a basis begins with; then it grows by as many as it has, but never by more than so many: a large model's
#: vectors are gigabytes.
_FIRST_ROWS, _MOST_ROWS = 4, 8


class Basis:
    """Orthonormal vectors, in blocks of rows: growing copies nothing."""

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._size = 0

    def __len__(self) -> int:
        """Give the number of vectors."""
        return self._size

    def __getitem__(self, place: int) -> Tensor:
        """Give one vector, [dimension]."""
        for block in self._blocks:
            if place < len(block):
                return block[place]
            place -= len(block)
        raise IndexError(place)

    def append(self, vector: Tensor) -> None:
        """Take a unit vector, orthogonal to all."""
        if self._size == sum(map(len, self._blocks)):
            rows = min(max(self._size, _FIRST_ROWS), _MOST_ROWS)
            self._blocks.append(vector.new_empty(rows, len(vector)))
        self._size += 1
        self[self._size - 1].copy_(vector)

    def coefficients(self, vector: Tensor) -> Tensor:
        """Give the products with every vector.

        Returns:
            [vectors].
        """
        return torch.cat([block @ vector for block in self._filled()])

    def combine(self, weights: Tensor) -> Tensor:
        """Add the vectors up.

        Args:
            weights: [vectors].

        Returns:
            [dimension].
        """
        total = torch.zeros_like(self[0])
        place = 0
        for block in self._filled():
            total += weights[place : place + len(block)] @ block
            place += len(block)
        return total

    def remainder(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Take out of a vector what lies in the span.

        Returns:
            The coefficients [vectors] and what is left [dimension].
        """
        total = torch.zeros(self._size, dtype=vector.dtype, device=vector.device)
        # Twice is enough: the second pass removes what rounding left of the first (Parlett).
        for _ in range(2):
            coefficients = self.coefficients(vector)
            vector = self.combine(coefficients).neg_().add_(vector)
            total = total + coefficients
        return total, vector

    def _filled(self) -> list[Tensor]:
        left = self._size
        filled: list[Tensor] = []
        for block in self._blocks:
            filled.append(block[:left])
            left -= len(filled[-1])
        return filled


@dataclass(frozen=True, slots=True)
class RitzPairs:
    """What a space knows of the spectrum: Ritz values in ascending order, on the CPU in float64.

    Attributes:
        values: [products].
        vectors: one a column, over the vectors that were multiplied, [products, products].
        residuals: [products].
        asymmetry: largest |u'Mv - v'Mu|.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    asymmetry: float

    @property
    def scale(self) -> float:
        """Size of the larger end."""
        return max(abs(float(self.values[0])), abs(float(self.values[-1])))


class KrylovSpace:
    """One Lanczos process: `vector` is to be multiplied next, `advance` takes its image, until `finished`.

    Attributes:
        rule: when it ends.
        products: images taken so far.
        finished: whether it wants no more.
    """

    def __init__(self, start: Tensor, rule: StopRule) -> None:
        """Begin at a vector. Nothing waits for the device; a zero start ends as an operator that is not finite does.

        Args:
            start: some weight on the wanted eigenvectors, [dimension].
            rule: when to end.
        """
        self.rule = rule
        self.products = 0
        self.finished = False
        self._basis = Basis()
        self._basis.append(start / torch.linalg.vector_norm(start))
        self._waiting = deque([0])  # places in the basis that are not multiplied yet
        self._multiplied: list[int] = []
        self._columns: list[
            list[float]
        ] = []  # q_i' M q_j over the basis of its time, and the remainder's norm
        self._dimension = len(start)
        self._eps, self._tiny = torch.finfo(start.dtype).eps, torch.finfo(start.dtype).tiny
        self._ritz: RitzPairs | None = None
        self._before: RitzPairs | None = None
        self._exhausted = False

    @property
    def vector(self) -> Tensor:
        """The unit vector to multiply next, [dimension]."""
        return self._basis[self._waiting[0]]

    @property
    def pairs(self) -> RitzPairs | None:
        """What is known of the spectrum so far; None where the operator gave something not finite."""
        return self._ritz

    def advance(self, image: Tensor) -> None:
        """Take the product of the operator with `vector`, [dimension]."""
        advance_together([self], [image])

    def result(self) -> Extremes:
        """Say what is known now.

        Returns:
            Both ends; NaN where the operator gave something not finite.
        """
        pairs = self._ritz
        if pairs is None:
            nothing = Eigenvalue(math.nan, math.inf, False)
            return Extremes(nothing, nothing, self.ritz_vector(-1), self.products)
        return Extremes(
            self._eigenvalue(-1),
            self._eigenvalue(0),
            self.ritz_vector(-1),
            self.products,
            pairs.asymmetry / pairs.scale if pairs.scale else 0.0,
            self.ritz_vector(0) if self._other_is_dominant(pairs) else None,
        )

    def _other_is_dominant(self, pairs: RitzPairs) -> bool:
        return self.rule.ends != "largest" and -float(pairs.values[0]) > abs(float(pairs.values[-1]))

    def ritz_vector(self, end: int) -> Tensor:
        """Build the Ritz vector of one end.

        Args:
            end: -1 for the largest, 0 for the smallest.

        Returns:
            A unit vector, [dimension]; the start where nothing finite is known.
        """
        like = self._basis[0]
        if self._ritz is None:
            return like.clone()
        weights = torch.zeros(len(self._basis), dtype=torch.float64)
        weights[self._multiplied] = self._ritz.vectors[:, end]
        combined = self._basis.combine(weights.to(like.dtype).to(like.device))
        return torch.nn.functional.normalize(combined, dim=0)

    def _eigenvalue(self, end: int) -> Eigenvalue:
        assert self._ritz is not None
        value, residual = float(self._ritz.values[end]), float(self._ritz.residuals[end])
        return Eigenvalue(value, residual, self._certified(end), estimated_error(self._ritz, end))

    def _certified(self, end: int) -> bool:
        assert self._ritz is not None
        size = abs(float(self._ritz.values[end]))
        if self._exhausted:
            return float(self._ritz.residuals[end]) <= max(self.rule.residual * size, 10 * self._rounding())
        # The space was built for the larger end: the other one may rest on a plateau, and says so by moving.
        still = size >= self._ritz.scale or self._moved(end) <= self.rule.doubt * size
        return (
            self.products >= self.rule.minimum
            and still
            and self._settled(end, self._ritz.scale if self.rule.ends == "both" else size)
            and not in_doubt(self._ritz, end, size, self.rule)
        )

    def _settled(self, end: int, size: float) -> bool:
        assert self._ritz is not None
        allowed = self.rule.residual * size
        return float(self._ritz.residuals[end]) <= allowed and self._moved(end) <= allowed

    def _moved(self, end: int) -> float:
        """How far the last product moved an end."""
        if self._ritz is None or self._before is None:
            return math.inf
        return abs(float(self._ritz.values[end] - self._before.values[end]))

    def _enough(self) -> bool:
        return self.products >= self.rule.minimum and all(
            self._settled(end, size) for end, size in self._wanted()
        )

    def _wanted(self) -> list[tuple[int, float]]:
        """The ends that are looked for, each with the size that its residual is compared with."""
        pairs = self._ritz
        assert pairs is not None
        largest, smallest = float(pairs.values[-1]), float(pairs.values[0])
        if self.rule.ends == "both":
            return [(-1, abs(largest)), (0, pairs.scale)]
        if self.rule.ends == "largest":
            return [(-1, abs(largest))]
        dominant = -1 if abs(largest) >= abs(smallest) else 0
        # As long as the other end may yet be the larger one, both are looked for.
        close = abs(float(pairs.values[-1 - dominant])) + float(pairs.residuals[-1 - dominant]) > pairs.scale
        return [(-1, pairs.scale), (0, pairs.scale)] if close else [(dominant, pairs.scale)]

    def _rounding(self) -> float:
        assert self._ritz is not None
        return self._eps * self._ritz.scale * math.sqrt(self._dimension)

    def _conclude(self, column: list[float], remainder: Tensor) -> None:
        """Take what is now known of M q for the vector that was next, and decide whether to go on."""
        self.products += 1
        if not all(map(math.isfinite, column)):
            self._ritz, self.finished = None, True
            return
        self._multiplied.append(self._waiting.popleft())
        self._columns.append(column)
        self._before, self._ritz = self._ritz, self._rayleigh_ritz()
        room = self.products < self._dimension and len(self._basis) < self._dimension
        if room and column[-1] > max(10 * self._rounding(), self._tiny):
            self._waiting.append(len(self._basis))
            self._basis.append(remainder.div_(column[-1]))
        self._decide()

    def _decide(self) -> None:
        self._exhausted = not self._waiting
        self.finished = self._exhausted or self.products >= self.rule.maximum or self._enough()

    def _rayleigh_ritz(self) -> RitzPairs:
        rows = max(map(len, self._columns))
        images = torch.zeros(rows, self.products, dtype=torch.float64)
        for place, column in enumerate(self._columns):
            images[: len(column), place] = torch.tensor(column, dtype=torch.float64)
        projected = images[self._multiplied]
        values, vectors = torch.linalg.eigh((projected + projected.T) / 2)
        rest = images @ vectors
        rest[self._multiplied] -= vectors * values
        asymmetry = float((projected - projected.T).abs().max())
        return RitzPairs(values, vectors, torch.linalg.vector_norm(rest, dim=0), asymmetry)


def advance_together(spaces: Sequence[KrylovSpace], images: Sequence[Tensor]) -> None:
    """Advance every space by the product of its operator with its `vector`.

    All coefficients of the step come to the host in one transfer; what they mean is decided there.

    Args:
        spaces: not finished; on one device, in one dtype.
        images: one a space, shaped as its `vector`.
    """
    remainders: list[Tensor] = []
    figures: list[Tensor] = []
    for space, image in zip(spaces, images, strict=True):
        coefficients, remainder = space._basis.remainder(image)
        remainders.append(remainder)
        figures += [coefficients, torch.linalg.vector_norm(remainder).unsqueeze(0)]
    numbers = iter(torch.cat(figures).tolist())
    for space, remainder in zip(spaces, remainders, strict=True):
        space._conclude([next(numbers) for _ in range(len(space._basis) + 1)], remainder)


def estimated_error(pairs: RitzPairs, end: int) -> float:
    """Estimate how far a Ritz value at one end is from its eigenvalue: min(r, r^2 / gap).

    The gap is taken to the nearest place where another Ritz value's own eigenvalue may lie, and is unknown with one
    pair alone. It is the true gap only if the space has seen all of that end: an estimate (Parlett, The Symmetric
    Eigenvalue Problem, section 11.7).

    Args:
        pairs: of the space.
        end: -1 for the largest, 0 for the smallest.

    Returns:
        In units of the operator.
    """
    residual = float(pairs.residuals[end])
    if len(pairs.values) < 2:
        return residual
    gap = -_room(pairs, end, 1.0)
    return min(residual, residual**2 / gap) if gap > 0 else residual


def in_doubt(pairs: RitzPairs, end: int, size: float, rule: StopRule) -> bool:
    """Whether what the space has seen leaves open that an end lies elsewhere by more than a share of a size.

    That is so where its own error may be as large, as a near-tied neighbour makes it; and where another Ritz vector
    may hold a farther eigenvector. One that holds a share c of it shows that in its residual, r >= c |lambda - theta|,
    so `reach` = 1/c residuals beyond its value are looked at. An eigenvector that the space has not met leaves no
    trace here.

    Args:
        pairs: of the space.
        end: -1 for the largest, 0 for the smallest.
        size: what it is compared with.
        rule: its `doubt` and `reach`.

    Returns:
        True where it may.
    """
    return max(estimated_error(pairs, end), _room(pairs, end, rule.reach)) > rule.doubt * size


def _room(pairs: RitzPairs, end: int, reach: float) -> float:
    """How far beyond an end the eigenvalues of other pairs may lie; negative where all stay short of it."""
    if len(pairs.values) < 2:
        return 0.0
    side = 1.0 if end else -1.0
    others = slice(None, -1) if end else slice(1, None)
    farthest = (side * pairs.values[others] + reach * pairs.residuals[others]).max()
    return float(farthest) - side * float(pairs.values[end])
