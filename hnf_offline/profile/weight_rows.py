"""Rows of the tier `weights`: one checkpoint's parameters, and how they differ from those before."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hnf_offline.linalg.hessian import Part
from hnf_offline.profile.forward import fetched
from hnf_offline.quantities.key_query_changes import increment_spectra
from hnf_offline.quantities.registry import Quantity, computable
from hnf_offline.quantities.weight_spectrum import matrix_spectra
from hnf_offline.run.model.layers import Layer
from hnf_offline.table import Row

TIER = "weights"
#: An interval this wide, as a share of the value, leaves it uncertified.
_UNSURE = 0.01
#: Parameters that are measured together, four bytes each and a few copies of them.
TOGETHER = 1 << 22
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
    if not now.finite:
        return nonfinite_rows(now.step, now.layers, parameters)
    entry = computable(frozenset({"weight"}), "forward")[0]
    rows = [Row(now.step, "", "model", -1, entry.name, 0.0)]
    earlier = [one for one in earlier if one.finite and _alike(one, now)]
    first = first if first is not None and first.finite and _alike(first, now) else None
    alone = _Collected(now.step, "")
    changes = _Collected(now.step, f"since step {earlier[0].step}" if earlier else "")
    since_first = _Collected(now.step, "" if first is None else f"since step {first.step}")
    neighbours = neighbours_of(now.layers)
    for group in alike(now.layers):
        weight = _stacked(group, parameters)
        _see_alone(alone, group, weight, parameters, neighbours)
        if earlier:
            _see_changes(changes, group, weight, now, earlier, device)
        if first is not None:
            start = _stacked(group, first.parameters, device)
            since_first.add(group, {"weight": weight, "first": start}, needing="first")
    if earlier:
        _see_increments(changes, now, earlier[0], device)
    for seen in (alone, changes, since_first):
        rows += seen.rows()
    return rows + _spectrum_rows(now.step, now.layers, parameters)


def _alike(one: Snapshot, other: Snapshot) -> bool:
    return one.parameters.keys() == other.parameters.keys() and all(
        value.shape == other.parameters[name].shape for name, value in one.parameters.items()
    )


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
    seen, neighbours = _Collected(step, ""), neighbours_of(layers)
    for group in alike(layers):
        _see_alone(seen, group, _stacked(group, parameters), parameters, neighbours)
    return seen.rows() + _spectrum_rows(step, layers, parameters)


def _see_alone(
    seen: _Collected,
    group: Sequence[Layer],
    weight: Tensor,
    parameters: Mapping[str, Tensor],
    neighbours: Mapping[str, Layer],
) -> None:
    """Distribution of the weights of some layers of one size, [layers, size]."""
    seen.add(group, {"weight": weight, "sorted_weight": _ordered(weight)})
    at = [place for place, layer in enumerate(group) if layer.path in neighbours]
    if at:
        own = [group[place] for place in at]
        before = _stacked([neighbours[layer.path] for layer in own], parameters)
        offered = {"weight": weight if len(at) == len(group) else weight[at], "neighbour": before}
        seen.add(own, offered, needing="neighbour")


def alike(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Group layers of one size, so that what is small is measured together.

    Yields:
        Layers, at most `TOGETHER` parameters of them unless it is one.
    """
    groups: dict[int, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.size, []).append(layer)
    for size, group in groups.items():
        most = max(1, TOGETHER // max(1, size))
        for first in range(0, len(group), most):
            yield group[first : first + most]


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


def _spectrum_rows(step: int, layers: Sequence[Layer], parameters: Mapping[str, Tensor]) -> list[Row]:
    """Singular values of each layer's largest matrix."""
    matrices = [(layer, matrices_of(layer, parameters)) for layer in layers]
    largest = [(layer, max(found, key=torch.numel)) for layer, found in matrices if found]
    entries = computable(frozenset({"spectrum"}), TIER)
    rows: list[Row] = []
    for (layer, _), spectrum in zip(largest, matrix_spectra([one for _, one in largest]), strict=True):
        place = layer.path, layer.kind, layer.depth
        for entry in entries:
            found = entry.function(spectrum)
            if found is None:
                continue
            sure = spectrum.whole or found.high - found.low <= _UNSURE * abs(found.value)
            rows.append(Row(step, *place, entry.name, found.value, found.low, found.high, sure))
    return rows


def _see_changes(
    seen: _Collected,
    group: Sequence[Layer],
    weight: Tensor,
    now: Snapshot,
    earlier: Sequence[Snapshot],
    device: torch.device,
) -> None:
    """How the weights of some layers of one size, [layers, size], and their first moments moved."""
    before = earlier[0]
    start = _stacked(group, before.parameters, device)
    offered = {"change": weight - start, "earlier": start}
    if len(earlier) > 1:
        offered["change_before"] = start - _stacked(group, earlier[1].parameters, device)
    seen.add(group, offered)
    held = [
        layer
        for layer in group
        if all(part.parameter in one.moments for part in layer.parts for one in (now, before))
    ]
    if held:
        moment, moment_before = (_stacked(held, one.moments, device) for one in (now, before))
        seen.add(held, {"moment": moment, "moment_before": moment_before})


def _see_increments(seen: _Collected, now: Snapshot, before: Snapshot, device: torch.device) -> None:
    """How the bilinear form of each head's scores moved."""
    keys = {layer.path.rpartition(".")[0]: layer for layer in now.layers if layer.kind == "key"}
    forms: dict[torch.Size, list[tuple[Layer, list[Tensor]]]] = {}
    for layer in now.layers:
        other = keys.get(layer.path.rpartition(".")[0])
        if layer.kind != "query" or other is None or layer.path not in now.heads:
            continue
        queries, groups = now.heads[layer.path]
        own = [
            _by_head(one, each.parameters, heads, device)
            for each in (before, now)
            for one, heads in ((layer, queries), (other, groups))
        ]
        found = [one for one in own if one is not None]
        if len(found) < len(own):
            continue
        query, key, later_query, later_key = found
        key, later_key = (one.repeat_interleave(queries // groups, dim=0) for one in (key, later_key))
        if query.shape == key.shape:
            changes = [query, key, later_query - query, later_key - key]
            forms.setdefault(query.shape, []).append((layer, changes))
    for alike_forms in forms.values():
        together = [torch.stack(each) for each in zip(*(found for _, found in alike_forms), strict=True)]
        second, third = increment_spectra(*together)
        seen.add([layer for layer, _ in alike_forms], {"second_order": second, "third_order": third})


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
    parts = [part.gather(tensors[part.parameter].detach()) for part in layer.parts]
    flat = parts[0] if len(parts) == 1 else torch.cat(parts)
    flat = flat if flat.dtype.itemsize >= 4 else flat.float()
    return flat if device is None else flat.to(device)


def _stacked(
    layers: Sequence[Layer], tensors: Mapping[str, Tensor], device: torch.device | None = None
) -> Tensor:
    """[layers, size]."""
    flat = [_flat(layer, tensors, device) for layer in layers]
    return flat[0].unsqueeze(0) if len(flat) == 1 else torch.stack(flat)


def _ordered(weight: Tensor) -> Tensor:
    """In ascending order; with NumPy on the CPU, which takes a tenth of torch's time."""
    if weight.device.type != "cpu":
        return weight.sort(dim=-1).values
    return torch.from_numpy(np.sort(weight.numpy(), axis=-1))


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
        self._seen: list[tuple[Sequence[Layer], Quantity, Tensor]] = []

    def add(self, layers: Sequence[Layer], offered: Mapping[str, Tensor], needing: str = "") -> None:
        """Evaluate every quantity of the tier whose inputs are offered for some layers, and that needs one of them."""
        for entry in computable(frozenset(offered), TIER):
            if needing and needing not in entry.inputs:
                continue
            value = entry.function(**{name: offered[name] for name in entry.inputs})
            self._seen.append((layers, entry, value.double()))

    def rows(self) -> list[Row]:
        """Give a row a value, layer by layer; none where 0 was divided by 0, as for a layer that did not move."""
        found: dict[int, list[Row]] = {}
        values = fetched([value for _, _, value in self._seen])
        for (layers, entry, _), value in zip(self._seen, values, strict=True):
            for layer, own in zip(layers, value.tolist(), strict=True):
                found.setdefault(layer.depth, []).extend(self._rows(layer, entry, own))
        return [row for depth in sorted(found) for row in found[depth]]

    def _rows(self, layer: Layer, entry: Quantity, value: float | list[float]) -> Iterator[Row]:
        place = self._step, layer.path, layer.kind, layer.depth
        if isinstance(value, float):
            if math.isfinite(value):
                yield Row(*place, entry.name, value, batch=self._batch)
        elif all(map(math.isfinite, value)):
            worst = max(value) if entry.worst_head == "max" else min(value)
            yield Row(*place, entry.name, worst, batch=self._batch)
            yield Row(*place, f"{entry.name}_head", float(value.index(worst)), batch=self._batch)
