"""Krylov steps taken by many independent items in lock-step: every vector is [batch, size], one row an item.

An item whose Krylov space is exhausted goes on with zero vectors. They change no Ritz value, and the other items
need not wait for a decision on the host.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unit(vectors: Tensor) -> Tensor:
    """Divide every row by its length.

    Args:
        vectors: [batch, size].

    Returns:
        Unit rows, [batch, size]; a zero row stays zero, a row that is not finite becomes NaN.
    """
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return torch.where(length == 0, torch.zeros_like(vectors), vectors / length)


def orthogonalised(vectors: Tensor, basis: Tensor) -> Tensor:
    """Take every row's components in its own basis away.

    Args:
        vectors: [batch, size].
        basis: orthonormal or zero rows, [batch, count, size].

    Returns:
        [batch, size].
    """
    # Twice is enough: the second pass removes what rounding left of the first (Parlett).
    for _ in range(2):
        weights = torch.einsum("bkn,bn->bk", basis, vectors)
        vectors = vectors - torch.einsum("bkn,bk->bn", basis, weights)
    return vectors


def split_length(vectors: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Write every row as length times unit vector; what is rounding of the items' scale counts as zero.

    Args:
        vectors: [batch, size].
        scale: largest length met so far, [batch].

    Returns:
        Lengths [batch], unit or zero rows [batch, size], and the new scale [batch].
    """
    length = torch.linalg.vector_norm(vectors, dim=-1)
    scale = torch.maximum(scale, length)
    rounding = 10 * torch.finfo(vectors.dtype).eps * vectors.shape[-1] ** 0.5 * scale
    # "At most", so that a NaN is neither hidden nor called zero.
    exhausted = length <= rounding
    directions = torch.where(exhausted[:, None], torch.zeros_like(vectors), vectors / length[:, None])
    return torch.where(exhausted, torch.zeros_like(length), length), directions, scale
