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
    home = torch.device("cpu") if before.device.type == "mps" else before.device
    centred = before.to(home, torch.float64)
    centred = centred - centred.mean(dim=0)
    moved = after.to(home, torch.float64)
    moved = moved - moved.mean(dim=0)
    directions, spread = _principal(centred.detach(), rank, seed)
    whiten = directions / (spread.square() + RIDGE).sqrt()
    inputs, outputs = centred @ whiten, moved @ whiten
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
