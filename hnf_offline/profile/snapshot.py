"""A checkpoint's weights laid out by size, so that layers that look alike are measured together, uncopied."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hnf_offline.linalg.hessian import Part
from hnf_offline.run.model.layers import Layer

#: Parameters that are measured together, four bytes each and a few copies of them.
TOGETHER = 1 << 22


@dataclass(frozen=True, slots=True)
class Alike:
    """Layers of one size, which lie one after another in the flat vector of all parameters.

    Attributes:
        layers: in forward order.
        start: where the first one begins.
        size: parameters of each.
    """

    layers: tuple[Layer, ...]
    start: int
    size: int

    def of(self, flat: Tensor) -> Tensor:
        """Give these layers' stretch of flat vectors, [..., parameters], as [..., layers, size]; no copy."""
        stop = self.start + len(self.layers) * self.size
        return torch.unflatten(flat[..., self.start : stop], -1, (len(self.layers), self.size))

    def stretches(self, checkpoints: int) -> Iterator[slice]:
        """Cut the layers into what is measured together of several checkpoints.

        Yields:
            Places, of at most `TOGETHER` parameters in all unless it is one layer.
        """
        most = max(1, TOGETHER // max(1, self.size * checkpoints))
        for first in range(0, len(self.layers), most):
            yield slice(first, min(first + most, len(self.layers)))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A checkpoint in the host's memory.

    Attributes:
        step: of the checkpoint.
        layers: where its parameters belong.
        weights: all parameters, flat, as `laid_out` lays them.
        moments: the optimizer's first moments alike, 0 where there are none; None where it has none at all.
        moved: paths of the layers that have moments.
        heads: query layer's path -> query and key-value heads.
        finite: whether all parameters are.
    """

    step: int
    layers: tuple[Layer, ...]
    weights: Tensor
    moments: Tensor | None
    moved: frozenset[str]
    heads: Mapping[str, tuple[int, int]]
    finite: bool


def alike(layers: Sequence[Layer]) -> tuple[Alike, ...]:
    """Group layers by size.

    Returns:
        The groups, in the order of their first layers.
    """
    sizes: dict[int, list[Layer]] = {}
    for layer in layers:
        sizes.setdefault(layer.size, []).append(layer)
    groups: list[Alike] = []
    start = 0
    for size, own in sizes.items():
        groups.append(Alike(tuple(own), start, size))
        start += size * len(own)
    return tuple(groups)


def laid_out(layers: Sequence[Layer], tensors: Mapping[str, Tensor]) -> Tensor:
    """Lay the parameters of all layers out, group by group of `alike`, layer by layer, part by part.

    Args:
        layers: the layers.
        tensors: by parameter name; 0 is taken for a parameter that is not there.

    Returns:
        One flat vector, of the parameters' dtype; a copy.
    """
    one = next(iter(tensors.values()), torch.zeros(0))
    pieces = [
        part.gather(tensors[part.parameter].detach())
        if part.parameter in tensors
        else torch.zeros(part.size, dtype=one.dtype, device=one.device)
        for group in alike(layers)
        for layer in group.layers
        for part in layer.parts
    ]
    return torch.cat(pieces) if pieces else one.new_zeros(0)


def snapshot_of_parameters(
    step: int,
    layers: tuple[Layer, ...],
    parameters: Mapping[str, Tensor],
    moments: Mapping[str, Tensor] | None = None,
    heads: Mapping[str, tuple[int, int]] | None = None,
) -> Snapshot:
    """Make a snapshot of a model's parameters.

    Args:
        step: of the checkpoint.
        layers: where its parameters belong.
        parameters: by name.
        moments: the optimizer's first moments by parameter name, those it has.
        heads: query layer's path -> query and key-value heads.

    Returns:
        The snapshot, on the device of the parameters.
    """
    weights = laid_out(layers, parameters)
    held = moments or {}
    moved = [layer.path for layer in layers if all(part.parameter in held for part in layer.parts)]
    return Snapshot(
        step,
        layers,
        weights,
        laid_out(layers, held) if moved else None,
        frozenset(moved),
        heads or {},
        bool(weights.isfinite().all()),
    )


def same_shapes(one: Snapshot, other: Snapshot) -> bool:
    """Tell whether two checkpoints have the same layers of the same shapes, so that they can be subtracted.

    Returns:
        True if so.
    """
    if one.layers is other.layers:
        return True
    return [_shapes(layer) for layer in one.layers] == [_shapes(layer) for layer in other.layers]


def _shapes(layer: Layer) -> tuple[object, ...]:
    return layer.path, *((part.parameter, part.shape, part.size) for part in layer.parts)


def matrices_in(layer: Layer, own: Tensor) -> list[Tensor]:
    """Give a layer's weights that are matrices.

    Args:
        layer: the layer.
        own: its parameters, flat, part by part, [..., size].

    Returns:
        One [..., rows, columns] a part that is no vector.
    """
    pieces = own.split_with_sizes([part.size for part in layer.parts], dim=-1)
    found = (matrix_of(part, piece) for part, piece in zip(layer.parts, pieces, strict=True))
    return [matrix for matrix in found if matrix is not None]


def matrix_of(part: Part, own: Tensor) -> Tensor | None:
    """Give a part as a matrix, its outputs first where the part is a stretch of a fused projection.

    Args:
        part: the part.
        own: its parameters, flat, [..., size].

    Returns:
        [..., rows, columns]; None for vectors.
    """
    if len(part.shape) < 2 or min(part.shape[0], math.prod(part.shape[1:])) < 2:
        return None
    if part.index is None:
        return torch.unflatten(own, -1, (part.shape[0], -1))
    width = part.shape[1]
    start = int(part.index[0])
    whole_rows = start % width == 0 and bool((part.index[:width] == torch.arange(start, start + width)).all())
    rows = (-1, width) if whole_rows else (part.shape[0], -1)
    matrix = torch.unflatten(own, -1, rows)
    return matrix if whole_rows else matrix.mT
