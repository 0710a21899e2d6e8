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
#: Entries that a float32 sums without losing digits, and that are widened at once.
_STRETCH = 1 << 12


def length(vector: Tensor) -> Tensor:
    """Euclidean norm over the last dimension; in float64, but for stretches of a float32 that hold their squares.

    Args:
        vector: [..., n], of any floating type.

    Returns:
        [...], float64 (on devices that have none, the vector's own type).
    """
    import torch

    norms = _own_lengths(vector)
    if norms is not None and norms.shape[-1] == 1:
        return norms.squeeze(-1).to(_widest(vector))
    norm: Tensor = torch.linalg.vector_norm(vector if norms is None else norms, dim=-1, dtype=_widest(vector))
    return norm


def inner(one: Tensor, other: Tensor) -> Tensor:
    """Inner product over the last dimension, in float64, but for products that a float32 holds.

    Args:
        one: [..., n].
        other: [..., n].

    Returns:
        [...], of the type that `length` has.
    """
    import torch

    wide = _widest(one)
    if _own_lengths(one) is not None and _own_lengths(other) is not None:
        return (one * other).sum(dim=-1).to(wide)  # which torch adds pairwise
    total = one.new_zeros(one.shape[:-1], dtype=wide)
    pieces = (torch.split(each, _STRETCH, dim=-1) for each in (one, other))
    for left, right in zip(*pieces, strict=True):
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


def _own_lengths(vector: Tensor) -> Tensor | None:
    """Norms of the stretches of vectors in float32, [..., stretches], where that holds their squares.

    Returns:
        None where it may not, and where to look at it would mean to wait for a device.
    """
    import torch

    if vector.device.type != "cpu" or vector.dtype != torch.float32 or not vector.numel():
        return None
    size = vector.shape[-1]
    even = size - size % _STRETCH
    norms: list[Tensor] = []
    if even:
        stretches = torch.unflatten(vector[..., :even], -1, (-1, _STRETCH))
        norms.append(torch.linalg.vector_norm(stretches, dim=-1))
    if even < size:
        norms.append(torch.linalg.vector_norm(vector[..., even:], dim=-1, keepdim=True))
    together = norms[0] if len(norms) == 1 else torch.cat(norms, dim=-1)
    lowest, highest = torch.aminmax(together)
    return together if bool(lowest > _SAFE[0]) and bool(highest < _SAFE[1]) else None


def _widest(vector: Tensor) -> torch.dtype:
    import torch

    return torch.float32 if vector.device.type == "mps" else torch.float64
