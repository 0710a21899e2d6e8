"""The trace of a symmetric operator known by its products, with an error that the estimate finds out by itself.

XTrace with normalised test vectors (Epperly, Tropp & Webber 2024, arXiv 2301.07825): half of the products
sketch the operator's range, the other half give its trace there exactly, and every test vector in turn is left
out of the sketch and estimates what lies beyond it. A few dominant eigenvalues, which make the plain estimator of
Hutchinson noisy, fall into the sketch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hnf_offline.linalg.operator import SymmetricOperator

#: Products from which XTrace has more than one test vector, and with that an error.
FEWEST_PRODUCTS = 4

#: The test vectors share most of their sketch, so that their mean is less sure than that of independent ones: by
#: up to 1.5 times on the spectra that `trace` names. Without this factor the plain standard error would flatter.
SHARED = math.sqrt(2.0)


@dataclass(frozen=True, slots=True)
class TraceEstimate:
    """A trace and how far it may be off.

    Attributes:
        value: the estimate; unbiased over seeds.
        error: its standard error, as the test vectors' own estimates tell it (`SHARED`); 0.0 where it is exact.
        products: products with the operator that were spent.
        dimension: rows of the operator; value / dimension is the mean eigenvalue.
    """

    value: float
    error: float
    products: int
    dimension: int


class XTrace:
    """One estimate, driven from outside so that many can share their products.

    Give `vector` to the operator and its product to `advance`, until `finished`; then take `result`. Nothing is
    moved off the device before that. Holds products / 2 vectors, twice as many for a moment half-way.

    Attributes:
        dimension: rows of the operator.
        products: products it will take: an even number, or `dimension` where that is no more.
    """

    def __init__(
        self, dimension: int, *, products: int = 12, seed: int = 0, like: Tensor | None = None
    ) -> None:
        """Draw the test vectors: uniform on the sphere, on the CPU, so that every device draws alike.

        Args:
            dimension: rows of the operator.
            products: budget; with at least `dimension` products the trace is exact and costs `dimension`.
            seed: seed of the test vectors; estimates that are added up need different ones.
            like: a tensor of the device and dtype to work in; None for float64 on the CPU.

        Raises:
            ValueError: if the budget leaves no error estimate.
        """
        self.dimension = dimension
        self._exact = dimension <= products
        if not self._exact and products < FEWEST_PRODUCTS:
            raise ValueError(f"{products} products give no error estimate; take {FEWEST_PRODUCTS} or more")
        self._like = torch.empty((), dtype=torch.float64) if like is None else like
        probes = products // 2
        self.products = dimension if self._exact else 2 * probes
        self._taken = 0
        self._diagonal: list[Tensor] = []
        self._images: list[Tensor] = []
        self._columns: list[Tensor] = []
        self._basis: Tensor | None = None  # Q, [dimension, probes]
        self._overlaps: Tensor | None = None  # Q' omega, [probes, probes]
        self._triangle: Tensor | None = None  # R of Q R = M omega, [probes, probes]
        self._tests: Tensor | None = None  # omega, [dimension, probes], unit columns
        if not self._exact:
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randn(probes, dimension, generator=generator, dtype=torch.float64)
            drawn = torch.nn.functional.normalize(drawn, dim=1)
            self._tests = drawn.to(self._like.device, self._like.dtype).T

    @property
    def finished(self) -> bool:
        """Whether all products are there."""
        return self._taken == self.products

    @property
    def vector(self) -> Tensor:
        """The next unit vector to multiply, [dimension]."""
        if self._exact:
            unit = torch.zeros(self.dimension, device=self._like.device, dtype=self._like.dtype)
            unit[self._taken] = 1.0
            return unit
        if self._tests is not None:
            return self._tests[:, self._taken]
        assert self._basis is not None
        return self._basis[:, self._taken - self._basis.shape[1]]

    def advance(self, image: Tensor) -> None:
        """Take the operator's product with `vector`.

        Args:
            image: [dimension].
        """
        if self._exact:
            self._diagonal.append(image[self._taken].clone())
        elif self._tests is not None:
            self._images.append(image)
        else:
            assert self._basis is not None
            self._columns.append(self._basis.T @ image)
        self._taken += 1
        if self._tests is not None and self._taken == self._tests.shape[1]:
            self._basis, self._triangle = torch.linalg.qr(torch.stack(self._images, dim=1))
            self._overlaps = self._basis.T @ self._tests
            self._images, self._tests = [], None

    def result(self) -> TraceEstimate:
        """Work out the estimate, on the CPU: all that is left is as small as the budget.

        Returns:
            The trace; NaN with an infinite error where a product was not finite.
        """
        if self._exact:
            value = float(torch.stack(self._diagonal).double().sum()) if self._diagonal else 0.0
            error = 0.0 if math.isfinite(value) else math.inf
            return TraceEstimate(
                value if math.isfinite(value) else math.nan, error, self._taken, self.dimension
            )
        assert self._triangle is not None and self._overlaps is not None
        small = torch.stack([torch.stack(self._columns, dim=1), self._triangle, self._overlaps])
        inside, triangle, overlaps = small.to("cpu", torch.float64)  # one transfer
        if not bool(torch.isfinite(small).all()):
            return TraceEstimate(math.nan, math.inf, self._taken, self.dimension)
        tolerance = torch.finfo(self._like.dtype).eps * math.sqrt(self.dimension)
        each = _leave_one_out((inside + inside.T) / 2, triangle, overlaps, self.dimension, tolerance)
        error = SHARED * float(each.std()) / math.sqrt(len(each))
        return TraceEstimate(float(each.mean()), error, self._taken, self.dimension)


def _leave_one_out(inside: Tensor, triangle: Tensor, overlaps: Tensor, size: int, tolerance: float) -> Tensor:
    """Estimate the trace once with each test vector, from the range that all the others span.

    Args:
        inside: Q' M Q, [k, k].
        triangle: R, [k, k]; column i holds M omega_i in the basis Q.
        overlaps: Q' omega, [k, k].
        size: n, the operator's dimension.
        tolerance: directions below this share of the sketch's largest are rounding and belong to nobody.

    Returns:
        [k]: tr(P M P) + d w' M w, P the projector on the others' range, w the direction of omega_i's part beyond P
        (uniform among all that are), d the number of dimensions there.
    """
    count = len(triangle)
    others = torch.tensor([[j for j in range(count) if j != i] for i in range(count)])
    left, strength, _ = torch.linalg.svd(triangle.T[others].mT, full_matrices=False)  # [k, k, k-1], [k, k-1]
    counted = strength > tolerance * torch.linalg.matrix_norm(triangle, 2)
    ranges = left * counted.unsqueeze(1)
    captured = torch.einsum("iab,ac,icb->i", ranges, inside, ranges)
    test, image = overlaps.T, triangle.T  # rows: Q' omega_i and Q' M omega_i
    kept = torch.einsum("iab,icb,ic->ia", ranges, ranges, test)  # P omega_i
    beyond = (
        (test * image).sum(1) - 2 * (kept * image).sum(1) + torch.einsum("ia,ab,ib->i", kept, inside, kept)
    )
    dimensions = size - counted.sum(1)
    length = 1 - kept.square().sum(1)
    each: Tensor = captured + beyond * dimensions / length
    return each


def trace(
    operator: SymmetricOperator, *, products: int = 12, seed: int = 0, like: Tensor | None = None
) -> TraceEstimate:
    """Estimate an operator's trace.

    Measured over 300 seeds on each of 20 spectra (flat, indefinite, decaying, low rank plus identity, and the blocks
    of a tiny trained GPT) with 8 to 24 products: value -+ error holds the truth in .56 to .79 of the cases, median
    .67, and value -+ 2 error in .80 to .98, median .90. A few estimates cannot know their own spread better.

    Args:
        operator: the symmetric operator.
        products: budget; from the operator's dimension on the trace is exact.
        seed: seed of the test vectors.
        like: a tensor of the device and dtype to work in; None for float64 on the CPU.

    Returns:
        The trace with its standard error.
    """
    estimate = XTrace(operator.dimension, products=products, seed=seed, like=like)
    while not estimate.finished:
        estimate.advance(operator(estimate.vector))
    return estimate.result()
