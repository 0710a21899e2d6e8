"""The spectral density of a symmetric operator by stochastic Lanczos quadrature.

Every random start vector sees each eigenvalue with the weight of its component there, 1 / dimension on average; the
Ritz values of its Krylov space, weighted by the squared first components of their vectors, are the Gauss quadrature
of that view (Ubaru, Chen & Saad 2017, SIAM J. Matrix Anal. Appl. 38(4); Ghorbani, Krishnan & Xiao 2019, arXiv
1901.10159). Bases are orthogonalised fully, so that no Ritz value comes twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hnf_offline.linalg.krylov import KrylovSpace
from hnf_offline.linalg.operator import SymmetricOperator
from hnf_offline.linalg.stopping import StopRule


@dataclass(frozen=True, slots=True)
class Quadrature:
    """One start vector's view of the spectrum, on the CPU in float64.

    Attributes:
        nodes: Ritz values in ascending order, [steps].
        weights: of the nodes, [steps]; they sum to 1.
        residuals: an eigenvalue lies this near to the node, [steps].
    """

    nodes: Tensor
    weights: Tensor
    residuals: Tensor

    def share_above(self, value: float) -> float:
        """Give the weight of the nodes above a value."""
        return float(self.weights[self.nodes > value].sum())

    def resolved(self, value: float) -> bool:
        """Whether the nodes on either side of a value have their eigenvalues on that side too."""
        distance = (self.nodes - value).abs()
        upper = int(torch.searchsorted(self.nodes, value))
        beside = [place for place in (upper - 1, upper) if 0 <= place < len(self.nodes)]
        return all(float(distance[place]) > float(self.residuals[place]) for place in beside)


@dataclass(frozen=True, slots=True)
class Share:
    """A share of a spectrum.

    Attributes:
        value: the mean over start vectors.
        error: its standard error over start vectors; 0.0 where the spectrum is known whole.
    """

    value: float
    error: float


@dataclass(frozen=True, slots=True)
class SpectralDensity:
    """What was seen of a spectrum.

    Attributes:
        dimension: rows of the operator, so that share times dimension is a number of eigenvalues.
        probes: one quadrature a start vector; the single exact one where the spectrum is known whole; none where
            the operator gave something that is not finite.
        products: products with the operator that were spent.
    """

    dimension: int
    probes: tuple[Quadrature, ...]
    products: int

    @property
    def nodes(self) -> Tensor:
        """Nodes of all probes, in ascending order, [nodes]."""
        return self._pooled()[0]

    @property
    def weights(self) -> Tensor:
        """Weights of `nodes`, [nodes]; they sum to 1."""
        return self._pooled()[1]

    def share_above(self, value: float) -> Share:
        """Estimate the share of the eigenvalues above a value.

        Returns:
            In [0, 1], with the spread over probes as its error.
        """
        return _mean([probe.share_above(value) for probe in self.probes])

    def share_below(self, value: float) -> Share:
        """Estimate the share of the eigenvalues below a value.

        Returns:
            In [0, 1], with the spread over probes as its error.
        """
        return _mean([float(probe.weights[probe.nodes < value].sum()) for probe in self.probes])

    def resolved(self, value: float) -> bool:
        """Whether every probe can tell on which side of a value its nearest eigenvalues lie."""
        return bool(self.probes) and all(probe.resolved(value) for probe in self.probes)

    def negative_energy(self) -> Share:
        """Estimate sum |lambda| over negative eigenvalues / sum |lambda| over all.

        Unlike the number of negative eigenvalues it does not hang on the sign of the many that are nearly zero,
        which no Krylov space of some tens of steps can see (Ghorbani et al.).

        Returns:
            In [0, 1]; 0 for the zero operator. The error is that of a ratio of means.
        """
        if not self.probes:
            return _mean([])
        sizes = torch.stack([one.weights @ one.nodes.abs() for one in self.probes])
        parts = torch.stack([one.weights @ one.nodes.clamp(max=0.0).abs() for one in self.probes])
        size = float(sizes.mean())
        if size == 0.0:
            return Share(0.0, 0.0)
        value = float(parts.mean()) / size
        return Share(value, _mean(((parts - value * sizes) / size).tolist()).error)

    def curve(self, grid: Tensor, width: float) -> Tensor:
        """Draw the density, every node as a Gaussian.

        Args:
            grid: where, [points].
            width: standard deviation of the Gaussians, in units of the operator; what is nearer together than this
                is not told apart.

        Returns:
            Eigenvalue density, [points]; its integral over all numbers is 1.
        """
        nodes, weights = self._pooled()
        apart = (grid.double().unsqueeze(1) - nodes) / width
        bells: Tensor = torch.exp(-apart.square() / 2) / (width * math.sqrt(2 * math.pi))
        return bells @ weights

    def _pooled(self) -> tuple[Tensor, Tensor]:
        nothing = torch.zeros(0, dtype=torch.float64)
        nodes = torch.cat([nothing, *[probe.nodes for probe in self.probes]])
        weights = torch.cat([nothing, *[probe.weights / len(self.probes) for probe in self.probes]])
        order = nodes.argsort(stable=True)
        return nodes[order], weights[order]


def spectral_density(
    operator: SymmetricOperator,
    *,
    probes: int = 4,
    steps: int = 40,
    seed: int = 0,
    like: Tensor | None = None,
) -> SpectralDensity:
    """Estimate an operator's spectral density.

    Holds one Krylov space at a time: `steps` vectors. Where the budget of probes * steps products reaches the
    dimension, the matrix is formed instead, and the spectrum is exact.

    Args:
        operator: the symmetric operator.
        probes: random start vectors, at least 2: their spread is the error.
        steps: products with each.
        seed: seed of the start vectors, drawn on the CPU.
        like: a tensor of the device and dtype to work in; None for float64 on the CPU.

    Returns:
        Nodes and weights of every probe.

    Raises:
        ValueError: if one probe alone would leave no error.
    """
    like = torch.empty((), dtype=torch.float64) if like is None else like
    size = operator.dimension
    if size <= probes * steps:
        return _whole_spectrum(operator, like)
    if probes < 2:
        raise ValueError("one start vector tells no error; take 2 or more")
    generator = torch.Generator().manual_seed(seed)
    rule = StopRule(residual=0.0, minimum=steps, maximum=steps)
    seen: list[Quadrature] = []
    spent = 0
    for _ in range(probes):
        space = KrylovSpace(torch.randn(size, generator=generator, dtype=torch.float64).to(like), rule)
        while not space.finished:
            space.advance(operator(space.vector))
        spent += space.products
        pairs = space.pairs
        if pairs is None:
            return SpectralDensity(size, (), spent)
        weights = pairs.vectors[0].square()
        seen.append(Quadrature(pairs.values, weights / weights.sum(), pairs.residuals))
    return SpectralDensity(size, tuple(seen), spent)


def _whole_spectrum(operator: SymmetricOperator, like: Tensor) -> SpectralDensity:
    size = operator.dimension
    columns: list[Tensor] = []
    for place in range(size):
        unit = torch.zeros(size, dtype=like.dtype, device=like.device)
        unit[place] = 1.0
        columns.append(operator(unit))
    matrix = torch.stack(columns).to("cpu", torch.float64)
    if not bool(torch.isfinite(matrix).all()):
        return SpectralDensity(size, (), size)
    nodes = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    rounding = torch.finfo(like.dtype).eps * float(nodes.abs().max()) * math.sqrt(size)
    even = torch.full((size,), 1 / size, dtype=torch.float64)
    return SpectralDensity(size, (Quadrature(nodes, even, torch.full_like(nodes, rounding)),), size)


def _mean(values: list[float]) -> Share:
    if not values:
        return Share(math.nan, math.inf)
    seen = torch.tensor(values, dtype=torch.float64)
    # One probe alone is the whole spectrum.
    error = float(seen.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Share(float(seen.mean()), error)
