"""Symmetric matrices with a known spectrum."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def symmetric(eigenvalues: Sequence[float], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return (
        basis
        @ torch.diag(torch.tensor([float(value) for value in eigenvalues], dtype=torch.float64))
        @ basis.T
    )


def start(size: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
