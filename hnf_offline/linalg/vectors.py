"""Lengths and products of vectors whose squares may leave the range of their precision. Torch-free at import.

A float32 ends at 3e38 and loses digits below 1e-38, so a sum of its squares says infinity of entries above 1e19 and 0
of entries below 1e-23: of gradients that vanish over depth, and of streams that explode, a wrong number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: Between these, no square of a float32 overflows and none that counts underflows.
_SAFE = 1e-15, 1e15
#: Entries that are widened at once: what a processor's cache holds.
_STRETCH = 1 << 17


def length(vector: Tensor) -> Tensor:
    """Euclidean norm over the last dimension, its squares summed in float64.

    Args:
        vector: [..., n], of any floating type.

    Returns:
        [...], float64 (on devices that have none, the vector's own type).
    """
    import torch

    norm: Tensor = torch.linalg.vector_norm(vector, dim=-1, dtype=_widest(vector))
    return norm


def inner(one: Tensor, other: Tensor) -> Tensor:
    """Inner product over the last dimension, in float64.

    Args:
        one: [..., n].
        other: [..., n].

    Returns:
        [...], of the type that `length` has.
    """
    import torch

    wide = _widest(one)
    total = one.new_zeros(one.shape[:-1], dtype=wide)
    stretches = (torch.split(vector, _STRETCH, dim=-1) for vector in (one, other))
    for left, right in zip(*stretches, strict=True):
        total = total + (left.to(wide) * right.to(wide)).sum(dim=-1)
    return total


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """Cosine of the angle between vectors, over the last dimension.

    Args:
        one: [..., n].
        other: [..., n].

    Returns:
        [...], in [-1, 1]; NaN where either vector is 0.
    """
    return (inner(one, other) / (length(one) * length(other))).clamp(-1.0, 1.0)


def row_lengths(rows: Tensor) -> Tensor:
    """Euclidean norms of many short vectors: in their own precision, which is faster, where it holds the squares.

    Args:
        rows: [..., n].

    Returns:
        [...], of the type that `length` has.
    """
    import torch

    if rows.device.type != "cpu" or rows.dtype.itemsize < 4 or rows.numel() == 0:
        return length(rows)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=-1)
    lowest, highest = torch.aminmax(norms)
    within = bool(lowest > _SAFE[0]) and bool(highest < _SAFE[1])
    return norms.double() if within else length(rows)


def _widest(vector: Tensor) -> torch.dtype:
    import torch

    return torch.float32 if vector.device.type == "mps" else torch.float64
