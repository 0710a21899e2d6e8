"""Rows of the tier `weights`: one checkpoint's parameters, and how they differ from those before."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hnf_offline.linalg.hessian import Part
from hnf_offline.profile.forward import fetched
from hnf_offline.quantities.key_query_changes import increment_spectra
from hnf_offline.quantities.registry import Quantity, computable
from hnf_offline.quantities.weight_spectrum import matrix_spectrum
from hnf_offline.run.model.layers import Layer
from hnf_offline.table import Row

TIER = "weights"
#: An interval this wide, as a share of the value, leaves it uncertified.
_UNSURE = 0.01
#: A part of a path that is a number: that of a block (not that of `norm1`).
_BLOCK_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A checkpoint in the host's memory.

    Attributes:
        step: of the checkpoint.
        layers: where its parameters belong.
        parameters: by name.
        moments: the optimizer's first moments by parameter name, those it has.
        heads: query layer's path -> query and key-value heads.
        finite: whether all parameters are.
    """

    step: int
    layers: tuple[Layer, ...]
    parameters: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    heads: Mapping[str, tuple[int, int]]
    finite: bool


def snapshot_rows(
    now: Snapshot, earlier: Sequence[Snapshot], first: Snapshot | None, device: torch.device
) -> list[Row]:
    """Measure a checkpoint's weights, alone and against those before it.

    Args:
        now: the checkpoint.
        earlier: those before it, the last one first.
        first: the first one of the run, None where that is `now`.
        device: where it is computed.

    Returns:
        Rows of the tier `weights`; of weights that are not finite only how many.
    """
    parameters = {name: value.to(device) for name, value in now.parameters.items()}
    rows = nonfinite_rows(now.step, now.layers, parameters)
    if not now.finite:
        return rows
    rows += alone_rows(now.step, now.layers, parameters)
    earlier = [one for one in earlier if one.finite and _alike(one, now)]
    if earlier:
        rows += _change_rows(now, earlier, device)
        rows += _increment_rows(now, earlier[0], device)
    if first is not None and first.finite and _alike(first, now):
        seen = _Collected(now.step, f"since step {first.step}")
        for layer in now.layers:
            start = _flat(layer, first.parameters, device)
            seen.add(layer, {"weight": _flat(layer, parameters), "first": start}, needing="first")
        rows += seen.rows()
    return rows


def _alike(one: Snapshot, other: Snapshot) -> bool:
    shapes = [{name: value.shape for name, value in each.parameters.items()} for each in (one, other)]
    return shapes[0] == shapes[1]


def nonfinite_rows(step: int, layers: Sequence[Layer], parameters: Mapping[str, Tensor]) -> list[Row]:
    """Count non-finite parameters, of the whole model and of every layer that has some.

    Returns:
        One row for the whole model, and one for each layer concerned.
    """
    entry = computable(frozenset({"weight"}), "forward")[0]
    if not layers:
        return [Row(step, "", "model", -1, entry.name, 0.0)]
    # One transfer for all layers.
    shares = torch.stack([entry.function(_flat(layer, parameters)) for layer in layers]).tolist()
    total = sum(layer.size for layer in layers)
    whole = sum(share * layer.size for share, layer in zip(shares, layers, strict=True)) / max(1, total)
    return [Row(step, "", "model", -1, entry.name, whole)] + [
        Row(step, layer.path, layer.kind, layer.depth, entry.name, share)
        for share, layer in zip(shares, layers, strict=True)
        if share > 0
    ]


def alone_rows(step: int, layers: Sequence[Layer], parameters: Mapping[str, Tensor]) -> list[Row]:
    """Measure the weights of one checkpoint: their distribution, and singular values of every matrix.

    Args:
        step: of the checkpoint.
        layers: where its parameters belong.
        parameters: by name, all finite.

    Returns:
        Rows of the tier `weights` that need no other checkpoint.
    """
    seen = _Collected(step, "")
    rows: list[Row] = []
    neighbours = neighbours_of(layers)
    for layer in layers:
        weight = _flat(layer, parameters)
        offered = {"weight": weight, "sorted_weight": _ordered(weight)}
        if layer.path in neighbours:
            offered["neighbour"] = _flat(neighbours[layer.path], parameters)
        seen.add(layer, offered)
        matrices = matrices_of(layer, parameters)
        if matrices:
            rows += _spectrum_rows(step, layer, max(matrices, key=torch.numel))
    return seen.rows() + rows


def neighbours_of(layers: Sequence[Layer]) -> dict[str, Layer]:
    """Find each layer's like in the block before: the same path but for a number, and the same shapes.

    Returns:
        Path -> layer.
    """
    last: dict[tuple[object, ...], Layer] = {}
    found: dict[str, Layer] = {}
    for layer in layers:
        like = _BLOCK_NUMBER.sub("#", layer.path), tuple((part.shape, part.size) for part in layer.parts)
        if like in last:
            found[layer.path] = last[like]
        last[like] = layer
    return found


def _spectrum_rows(step: int, layer: Layer, matrix: Tensor) -> list[Row]:
    spectrum = matrix_spectrum(matrix)
    rows: list[Row] = []
    for entry in computable(frozenset({"spectrum"}), TIER):
        found = entry.function(spectrum)
        if found is None:
            continue
        sure = spectrum.whole or found.high - found.low <= _UNSURE * abs(found.value)
        place = layer.path, layer.kind, layer.depth
        rows.append(Row(step, *place, entry.name, found.value, found.low, found.high, sure))
    return rows


def _change_rows(now: Snapshot, earlier: Sequence[Snapshot], device: torch.device) -> list[Row]:
    before = earlier[0]
    seen = _Collected(now.step, f"since step {before.step}")
    for layer in now.layers:
        weight, start = (_flat(layer, one.parameters, device) for one in (now, before))
        offered = {"change": weight - start, "earlier": start}
        if len(earlier) > 1:
            offered["change_before"] = start - _flat(layer, earlier[1].parameters, device)
        if all(part.parameter in one.moments for part in layer.parts for one in (now, before)):
            offered["moment"] = _flat(layer, now.moments, device)
            offered["moment_before"] = _flat(layer, before.moments, device)
        seen.add(layer, offered)
    return seen.rows()


def _increment_rows(now: Snapshot, before: Snapshot, device: torch.device) -> list[Row]:
    seen = _Collected(now.step, f"since step {before.step}")
    keys = {layer.path.rpartition(".")[0]: layer for layer in now.layers if layer.kind == "key"}
    for layer in now.layers:
        other = keys.get(layer.path.rpartition(".")[0])
        if layer.kind != "query" or other is None or layer.path not in now.heads:
            continue
        queries, groups = now.heads[layer.path]
        forms = [
            _by_head(one, parameters.parameters, heads, device)
            for parameters in (before, now)
            for one, heads in ((layer, queries), (other, groups))
        ]
        if any(form is None for form in forms):
            continue
        query, key, later_query, later_key = (form for form in forms if form is not None)
        key, later_key = (one.repeat_interleave(queries // groups, dim=0) for one in (key, later_key))
        if query.shape != key.shape:
            continue
        second, third = increment_spectra(query, key, later_query - query, later_key - key)
        seen.add(layer, {"second_order": second, "third_order": third})
    return seen.rows()


def _by_head(
    layer: Layer, parameters: Mapping[str, Tensor], heads: int, device: torch.device
) -> Tensor | None:
    """A projection as [heads, d_head, width], float64; None where it does not divide."""
    matrices = matrices_of(layer, parameters)
    if len(matrices) != 1 or matrices[0].shape[0] % heads:
        return None
    matrix = matrices[0].to(device, torch.float64)
    return matrix.reshape(heads, -1, matrix.shape[1])


def _flat(layer: Layer, tensors: Mapping[str, Tensor], device: torch.device | None = None) -> Tensor:
    flat = torch.cat([part.gather(tensors[part.parameter].detach()) for part in layer.parts])
    flat = flat if flat.dtype.itemsize >= 4 else flat.float()
    return flat if device is None else flat.to(device)


def _ordered(weight: Tensor) -> Tensor:
    """In ascending order; on the CPU only at the ranks that quantiles and ends are read from, which is faster."""
    if weight.device.type != "cpu":
        return weight.sort().values
    size = weight.numel()
    ranks = {0, size - 1, *(max(1, -(-share * size // 100)) - 1 for share in (1, 25, 50, 75, 99))}
    return torch.from_numpy(np.partition(weight.numpy(), sorted(ranks)))


def matrices_of(layer: Layer, parameters: Mapping[str, Tensor]) -> list[Tensor]:
    """Give a layer's weights that are matrices.

    Returns:
        One [rows, columns] a part that is no vector.
    """
    return [matrix for part in layer.parts if (matrix := matrix_of(part, parameters)) is not None]


def matrix_of(part: Part, parameters: Mapping[str, Tensor]) -> Tensor | None:
    """A part as a matrix, its outputs first where the part is a stretch of a fused projection; None for vectors."""
    if len(part.shape) < 2 or min(part.shape[0], math.prod(part.shape[1:])) < 2:
        return None
    flat = part.gather(parameters[part.parameter].detach())
    if part.index is None:
        return flat.reshape(part.shape[0], -1)
    width = part.shape[1]
    start = int(part.index[0])
    whole_rows = start % width == 0 and bool((part.index[:width] == torch.arange(start, start + width)).all())
    return flat.reshape(-1, width) if whole_rows else flat.reshape(part.shape[0], -1).T


class _Collected:
    """Values of many layers, brought from the device in one transfer."""

    def __init__(self, step: int, batch: str) -> None:
        self._step, self._batch = step, batch
        self._seen: list[tuple[Layer, Quantity, Tensor]] = []

    def add(self, layer: Layer, offered: Mapping[str, Tensor], needing: str = "") -> None:
        """Evaluate every quantity of the tier whose inputs are offered, and that needs one of them."""
        for entry in computable(frozenset(offered), TIER):
            if needing and needing not in entry.inputs:
                continue
            value = entry.function(**{name: offered[name] for name in entry.inputs})
            self._seen.append((layer, entry, value.double()))

    def rows(self) -> list[Row]:
        """Give a row a value; none where 0 was divided by 0, as for a layer that did not move."""
        return list(self._each())

    def _each(self) -> Iterator[Row]:
        values = fetched([value for _, _, value in self._seen])
        for (layer, entry, _), value in zip(self._seen, values, strict=True):
            row = Row(self._step, layer.path, layer.kind, layer.depth, entry.name, 0.0, batch=self._batch)
            if entry.worst_head is None:
                if math.isfinite(float(value)):
                    yield replace(row, value=float(value))
            elif bool(value.isfinite().all()):
                head = int(value.argmax() if entry.worst_head == "max" else value.argmin())
                yield replace(row, value=float(value[head]))
                yield replace(row, quantity=f"{entry.name}_head", value=float(head))
