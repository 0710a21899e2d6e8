"""Dynamic mode decomposition of one linear map between paired samples, differentiable in the samples.

Schmid 2010 for the decomposition; whitened, and between the residual streams of neighbouring blocks: Kim et al.
2026, arXiv 2602.22988. Whitening is a change of basis, so with full rank it changes no eigenvalue.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Added to every variance before whitening (arXiv 2602.22988).
RIDGE = 1e-5
#: Directions whose spread is below this share of the largest one hold rounding errors only.
_FLOOR = 1e-6
_OVERSAMPLING, _SWEEPS = 8, 3
#: Of the Kreiss constant: refinements of its grid, entries of shifted matrices held at once; up to which size norms are
#: exact, and power steps beyond.
_REFINEMENTS, _ENTRIES, _SMALL, _POWER_STEPS = 3, 2_000_000, 48, 30


def reduced_operator(before: Tensor, after: Tensor, rank: int, seed: int = 0) -> Tensor:
    """Fit the linear map from `before` to `after` in whitened coordinates of the leading principal directions.

    With P the leading principal directions of `before` over their standard deviations, B = Xc P and C = Yc P, it
    is the least-squares A of C^T = A B^T. P is found by a randomised range finder (Halko, Martinsson & Tropp 2011,
    exact once rank + 8 reaches the width) and held fixed when A is differentiated.

    Args:
        before: [samples, width], finite.
        after: [samples, width], of the same samples.
        rank: directions to keep; fewer are kept where `before` does not spread over as many.
        seed: of the range finder's random start.

    Returns:
        [rank, rank] in float64; empty where `before` does not spread at all.
    """
    return fitted(*whitened(before, after, rank, seed))


def whitened(before: Tensor, after: Tensor, rank: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Put paired samples into whitened coordinates of the leading principal directions of `before`.

    Args:
        before: [samples, width], finite.
        after: [samples, width], of the same samples.
        rank: directions to keep; fewer are kept where `before` does not spread over as many.
        seed: of the range finder's random start.

    Returns:
        B = Xc P and C = Yc P, [samples, rank] in float64, both centred by their own means.
    """
    home = torch.device("cpu") if before.device.type == "mps" else before.device
    centred = before.to(home, torch.float64)
    centred = centred - centred.mean(dim=0)
    moved = after.to(home, torch.float64)
    moved = moved - moved.mean(dim=0)
    directions, spread = _principal(centred.detach(), rank, seed)
    whiten = directions / (spread.square() + RIDGE).sqrt()
    return centred @ whiten, moved @ whiten


def fitted(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Fit the linear map from one set of centred samples to another.

    Args:
        inputs: [samples, n].
        outputs: [samples, n].

    Returns:
        The least-squares A of outputs^T = A inputs^T, [n, n].
    """
    transposed: Tensor = torch.linalg.solve(inputs.T @ inputs, inputs.T @ outputs)
    return transposed.T


def _principal(centred: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    samples, width = centred.shape
    columns = min(width, samples, rank + _OVERSAMPLING)
    start = torch.randn(width, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis = start.to(centred.device)
    for _ in range(_SWEEPS):
        basis = torch.linalg.qr(centred.T @ (centred @ basis)).Q
    _, sizes, right = torch.linalg.svd(centred @ basis, full_matrices=False)
    spread = sizes / max(1, samples - 1) ** 0.5
    kept = int((spread[:rank] > _FLOOR * spread[:1]).sum())
    return basis @ right.T[:, :kept], spread[:kept]


def eigenvalues(operator: Tensor) -> Tensor:
    """Give the eigenvalues of a general matrix, with first derivatives that cannot fail in a backward pass.

    lambda_j = w_j A v_j with the left and right eigenvectors held fixed, whose derivative is the eigenvalue's
    (Magnus 1985, On differentiating eigenvalues and eigenvectors).

    Args:
        operator: [n, n].

    Returns:
        [n], complex, on the CPU. NaN where the matrix has no basis of eigenvectors.
    """
    home = operator.cpu()
    with torch.no_grad():
        _, right = torch.linalg.eig(home)
        left, failed = torch.linalg.inv_ex(right)
        left = left if int(failed) == 0 else torch.full_like(left, float("nan"))
    return torch.einsum("ij,jk,ki->i", left, home.to(right.dtype), right)


def kreiss_constant(operator: Tensor) -> float:
    """Bound how much powers of a matrix grow before they decay, from below.

    K(A) = sup over |z| > 1 of (|z| - 1) ||(z I - A)^-1||_2; K <= sup_n ||A^n|| <= e n K (Kreiss matrix theorem;
    Trefethen & Embree 2005, section 18). 1 for a normal matrix whose eigenvalues lie within the unit circle.

    Args:
        operator: [n, n], real.

    Returns:
        The largest value found on a grid that is refined three times where it is highest; infinite where an
        eigenvalue lies outside the unit circle; 1 for n = 0.
    """
    import numpy as np
    from scipy.linalg import schur

    n = len(operator)
    if n == 0:
        return 1.0
    triangle = torch.from_numpy(schur(operator.detach().cpu().double().numpy(), output="complex")[0])
    if float(triangle.diagonal().abs().max()) > 1:
        return float("inf")

    lots = max(1, _ENTRIES // n**2)

    def highest(beyond: Tensor, angles: Tensor) -> tuple[float, float, float]:
        grid = torch.cartesian_prod(beyond, angles)
        norms = torch.cat([_resolvent_norm(triangle, *lot.T) for lot in torch.split(grid, lots)])
        values = grid[:, 0] * norms
        best = int(values.argmax())
        return float(values[best]), float(grid[best, 0]), float(grid[best, 1])

    # Complex eigenvalues of a real matrix come in pairs: the upper half of the plane shows everything.
    beyond, angles = torch.logspace(-4, 2, 19, dtype=torch.float64), torch.linspace(0, np.pi, 25).double()
    found, radius, angle = highest(beyond, angles)
    wide, turn = 10 ** (1 / 3), np.pi / 24
    for _ in range(_REFINEMENTS):
        steps = torch.linspace(-1, 1, 5, dtype=torch.float64)
        nearer = highest(radius * wide**steps, angle + turn * steps)
        found, radius, angle = max((found, radius, angle), nearer)
        wide, turn = wide**0.5, turn / 2
    return max(1.0, found)


def _resolvent_norm(triangle: Tensor, beyond: Tensor, angles: Tensor) -> Tensor:
    """||(z I - T)^-1||_2 at z = (1 + beyond) e^(i angle); of large matrices from below, by power steps."""
    n = len(triangle)
    z = torch.polar(1 + beyond, angles)
    shifted = z[:, None, None] * torch.eye(n, dtype=triangle.dtype) - triangle
    if n <= _SMALL:
        smallest: Tensor = torch.linalg.svdvals(shifted)[:, -1]
        return 1 / smallest
    start = torch.randn(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vector = torch.nn.functional.normalize(start, dim=0).to(triangle.dtype).expand(len(z), n, 1)
    norm = torch.zeros(len(z), dtype=torch.float64)
    for _ in range(_POWER_STEPS):
        solved = torch.linalg.solve_triangular(shifted, vector, upper=True)
        vector = torch.linalg.solve_triangular(shifted.mH, solved, upper=False)
        size = torch.linalg.vector_norm(vector, dim=(1, 2))
        norm, vector = size.sqrt(), vector / size[:, None, None]
    return norm
