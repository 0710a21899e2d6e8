"""Lengths and products of vectors whose squares may leave the range of their precision. Torch-free at import.

A float32 ends at 3e38 and loses digits below 1e-38, so a sum of its squares says infinity of entries above 1e19 and 0
of entries below 1e-23: of gradients that vanish over depth, and of streams that explode, a wrong number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from types import EllipsisType

    import torch
    from torch import Tensor

    Place = int | slice | list[int] | EllipsisType

#: Between these, no square of a float32 overflows and none that counts underflows.
_SAFE = 1e-15, 1e15
#: Entries that a float32 sums without losing digits, and that are widened at once.
_STRETCH = 1 << 12


class Vectors:
    """Vectors of one size whose lengths and means are taken once, however many quantities ask for them."""

    def __init__(self, values: Tensor) -> None:
        """Hold vectors; nothing is computed yet.

        Args:
            values: [..., n], of any floating type; not changed afterwards.
        """
        self.values = values
        self._own: Tensor | None = None
        self._lengths: Tensor | None = None
        self._means: Tensor | None = None

    def __getitem__(self, places: Place | tuple[Place, ...]) -> Vectors:
        """Select some of the vectors, with their lengths."""
        some = Vectors(self.values[places])
        some._lengths = self.lengths[places]  # which looks at the stretches as well
        some._own = None if self._own is None else self._own[places]
        return some

    @property
    def lengths(self) -> Tensor:
        """Euclidean norms, [...]; see `length`."""
        if self._lengths is None:
            self._own = _own_lengths(self.values)
            self._lengths = _total(self._own, self.values)
        return self._lengths

    @property
    def means(self) -> Tensor:
        """Means of the entries, [...], of their dtype."""
        if self._means is None:
            self._means = self.values.mean(dim=-1)
        return self._means

    @property
    def narrow(self) -> bool:
        """Whether a float32 holds the squares of all entries."""
        _ = self.lengths  # which looks at the stretches as well
        return self._own is not None


def length(vector: Tensor | Vectors) -> Tensor:
    """Euclidean norm over the last dimension; in float64, but for stretches of a float32 that hold their squares.

    Args:
        vector: [..., n], of any floating type.

    Returns:
        [...], float64 (on devices that have none, the vector's own type).
    """
    return (vector if isinstance(vector, Vectors) else Vectors(vector)).lengths


def mean(vector: Tensor | Vectors) -> Tensor:
    """Mean over the last dimension.

    Args:
        vector: [..., n], of any floating type.

    Returns:
        [...], of the vector's type.
    """
    return (vector if isinstance(vector, Vectors) else Vectors(vector)).means


def inner(one: Tensor | Vectors, other: Tensor | Vectors) -> Tensor:
    """Inner product over the last dimension, in float64, but for products that a float32 holds.

    Args:
        one: [..., n].
        other: [..., n].

    Returns:
        [...], of the type that `length` has.
    """
    import torch

    left, right = (each if isinstance(each, Vectors) else Vectors(each) for each in (one, other))
    wide = _widest(left.values)
    if left.narrow and right.narrow and left.values.shape == right.values.shape:
        return _narrow_products(left.values, right.values)
    total = left.values.new_zeros(left.values.shape[:-1], dtype=wide)
    pieces = (torch.split(each.values, _STRETCH, dim=-1) for each in (left, right))
    for own, others in zip(*pieces, strict=True):
        total = total + (own.to(wide) * others.to(wide)).sum(dim=-1)
    return total


def cosine(one: Tensor | Vectors, other: Tensor | Vectors) -> Tensor:
    """Cosine of the angle between vectors, over the last dimension.

    Args:
        one: [..., n].
        other: [..., n].

    Returns:
        [...], in [-1, 1]; NaN where either vector is 0.
    """
    left, right = (each if isinstance(each, Vectors) else Vectors(each) for each in (one, other))
    return (inner(left, right) / (left.lengths * right.lengths)).clamp(-1.0, 1.0)


def entries(vector: Tensor | Vectors) -> Tensor:
    """Give the entries of vectors, whether their lengths are kept or not.

    Returns:
        [..., n].
    """
    return vector.values if isinstance(vector, Vectors) else vector


def _stretches(vector: Tensor) -> list[Tensor]:
    """Cut into stretches, [..., stretches, entries]: those of full length, and what is left."""
    import torch

    size = vector.shape[-1]
    even = size - size % _STRETCH
    left = [vector[..., even:].unsqueeze(-2)] if even < size else []
    return [torch.unflatten(vector[..., :even], -1, (-1, _STRETCH)), *left] if even else left


def _own_lengths(vector: Tensor) -> Tensor | None:
    """Norms of the stretches of vectors in float32, [..., stretches], where that holds their squares.

    Returns:
        None where it may not, and where to look at it would mean to wait for a device.
    """
    import torch

    if vector.dtype != torch.float32 or vector.device.type != "cpu" or not vector.numel():
        return None
    norms = [torch.linalg.vector_norm(piece, dim=-1) for piece in _stretches(vector)]
    together = norms[0] if len(norms) == 1 else torch.cat(norms, dim=-1)
    lowest, highest = torch.aminmax(together)
    return together if _SAFE[0] < lowest.item() and highest.item() < _SAFE[1] else None


def _total(own: Tensor | None, vector: Tensor) -> Tensor:
    """Norms from those of the stretches, or from the entries."""
    import torch

    if own is not None and own.shape[-1] == 1:
        return own.squeeze(-1).to(_widest(vector))
    norm: Tensor = torch.linalg.vector_norm(vector if own is None else own, dim=-1, dtype=_widest(vector))
    return norm


def _narrow_products(one: Tensor, other: Tensor) -> Tensor:
    """Inner products of float32 vectors on the CPU, a stretch at a time: in one pass, which torch takes two for."""
    import torch

    pieces = zip(*(_stretches(each.detach()) for each in (one, other)), strict=True)
    # [..., stretches] each
    sums = [
        torch.as_tensor(np.einsum("...i,...i->...", own.numpy(), others.numpy())) for own, others in pieces
    ]
    return torch.cat(sums, dim=-1).sum(dim=-1, dtype=torch.float64)


def _widest(vector: Tensor) -> torch.dtype:
    import torch

    return torch.float32 if vector.device.type == "mps" else torch.float64
