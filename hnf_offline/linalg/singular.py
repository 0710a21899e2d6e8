"""The largest singular value of a matrix that changes little from one look to the next."""

from __future__ import annotations

import torch
from torch import Tensor


class LargestSingularValue:
    """Power iteration on a few vectors that are kept between looks.

    One kept vector is Miyato et al. 2018, Spectral normalization (arXiv 1802.05957, algorithm 1). A block of them
    (subspace iteration, Golub & Van Loan section 8.2.4) still finds the largest value when another singular vector
    overtakes.
    """

    def __init__(self, matrix: Tensor, *, vectors: int = 4, sweeps: int = 30, seed: int = 0) -> None:
        """Find the leading singular vectors from a random start.

        Args:
            matrix: [rows, columns].
            vectors: how many are kept.
            sweeps: iterations of the start.
            seed: of the start.
        """
        shape = matrix.shape[1], min(vectors, *matrix.shape)
        start = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        self._kept = torch.linalg.qr(start.to(matrix)).Q
        self.estimate(matrix, sweeps=sweeps)

    def estimate(self, matrix: Tensor, *, sweeps: int = 2) -> Tensor:
        """Look at the matrix as it is now.

        Args:
            matrix: [rows, columns].
            sweeps: iterations before the estimate.

        Returns:
            The largest singular value, from below: a scalar on the device. NaN where the matrix is not finite.
        """
        for _ in range(sweeps):
            self._kept = torch.linalg.qr(matrix.T @ (matrix @ self._kept)).Q
        reached = matrix @ self._kept
        gram = reached.T @ reached
        # The solver refuses what is not finite; asking beforehand would wait for the device.
        largest: Tensor = torch.linalg.eigvalsh(gram.nan_to_num(0.0, 0.0, 0.0))[-1].clamp(min=0).sqrt()
        return torch.where(gram.isfinite().all(), largest, torch.nan)
