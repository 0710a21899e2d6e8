"""Rows of the tier `weights`: checkpoints' parameters, and how they differ from those before."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hnf_offline.profile.forward import fetched
from hnf_offline.profile.snapshot import Alike, Snapshot, alike, matrices_in, same_shapes
from hnf_offline.quantities.key_query_changes import increment_spectra
from hnf_offline.quantities.registry import Quantity, computable
from hnf_offline.quantities.weight_spectrum import matrix_spectra
from hnf_offline.run.model.layers import Layer
from hnf_offline.table import Row

TIER = "weights"
#: An interval this wide, as a share of the value, leaves it uncertified.
_UNSURE = 0.01
#: A part of a path that is a number: that of a block (not that of `norm1`).
_BLOCK_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True, slots=True)
class Occasion:
    """A checkpoint, and what it is measured against.

    Attributes:
        now: the checkpoint.
        earlier: those before it, the last one first, at most two; finite, and of its shapes.
        first: the first one of the run, finite, and of its shapes; None where there is none, or it is `now`.
    """

    now: Snapshot
    earlier: tuple[Snapshot, ...] = ()
    first: Snapshot | None = None

    @property
    def moved(self) -> frozenset[str]:
        """Paths of the layers that have a first moment now and had one before."""
        return self.now.moved & self.earlier[0].moved if self.earlier else frozenset()

    def looks_like(self, other: Occasion) -> bool:
        """Tell whether the same can be measured of both."""
        return (
            len(self.earlier) == len(other.earlier)
            and (self.first is None) == (other.first is None)
            and self.moved == other.moved
            and same_shapes(self.now, other.now)
        )


def occasion(now: Snapshot, earlier: Sequence[Snapshot] = (), first: Snapshot | None = None) -> Occasion:
    """Leave out what a checkpoint cannot be measured against.

    Args:
        now: the checkpoint.
        earlier: those before it, the last one first.
        first: the first one of the run, None where that is `now`.

    Returns:
        The occasion.
    """
    usable = [one for one in earlier if one.finite and same_shapes(one, now)]
    start = first if first is not None and first.finite and same_shapes(first, now) else None
    return Occasion(now, tuple(usable[:2]), start)


def occasion_rows(occasions: Sequence[Occasion], device: torch.device) -> list[list[Row]]:
    """Measure checkpoints' weights, alone and against those before them; checkpoints that look alike side by side.

    Args:
        occasions: the checkpoints.
        device: where it is computed.

    Returns:
        Rows of the tier `weights` of each; of weights that are not finite only how many.
    """
    rows: list[list[Row]] = [[] for _ in occasions]
    lots: list[list[int]] = []
    for at, one in enumerate(occasions):
        if not one.now.finite:
            layers, weights = one.now.layers, one.now.weights.to(device)
            own = {layer.path: flat for layer, flat in _own(layers, weights)}
            rows[at] = _rows_of_nonfinite(one.now.step, layers, [own[layer.path] for layer in layers])
            continue
        lot = next((lot for lot in lots if occasions[lot[0]].looks_like(one)), None)
        if lot is None:
            lots.append(lot := [])
        lot.append(at)
    for lot in lots:
        for at, found in zip(lot, _rows_of([occasions[at] for at in lot], device), strict=True):
            rows[at] = found
    return rows


def alone_rows(now: Snapshot) -> list[Row]:
    """Measure the weights of one checkpoint: their distribution, and singular values of every matrix.

    Args:
        now: the checkpoint.

    Returns:
        Rows of the tier `weights` that need no other checkpoint.
    """
    return occasion_rows([Occasion(now)], now.weights.device)[0]


def nonfinite_rows(step: int, layers: Sequence[Layer], parameters: Mapping[str, Tensor]) -> list[Row]:
    """Count non-finite parameters, of the whole model and of every layer that has some.

    Returns:
        One row for the whole model, and one for each layer concerned.
    """
    parts = [[part.gather(parameters[part.parameter].detach()) for part in layer.parts] for layer in layers]
    return _rows_of_nonfinite(step, layers, [own[0] if len(own) == 1 else torch.cat(own) for own in parts])


def _rows_of_nonfinite(step: int, layers: Sequence[Layer], flat: Sequence[Tensor]) -> list[Row]:
    entry = computable(frozenset({"weight"}), "forward")[0]
    if not layers:
        return [Row(step, "", "model", -1, entry.name, 0.0)]
    # One transfer for all layers.
    shares = torch.stack([entry.function(own) for own in flat]).tolist()
    total = sum(layer.size for layer in layers)
    whole = sum(share * layer.size for share, layer in zip(shares, layers, strict=True)) / max(1, total)
    return [Row(step, "", "model", -1, entry.name, whole)] + [
        Row(step, layer.path, layer.kind, layer.depth, entry.name, share)
        for share, layer in zip(shares, layers, strict=True)
        if share > 0
    ]


def _rows_of(occasions: Sequence[Occasion], device: torch.device) -> list[list[Row]]:
    """Measure checkpoints that look alike; arrays are [checkpoints, layers, size]."""
    now, earlier = [one.now for one in occasions], list(zip(*(one.earlier for one in occasions), strict=True))
    layers, starts = now[0].layers, [one.first for one in occasions if one.first is not None]
    weights = _stacked([one.weights for one in now]).to(device)
    before = [_stacked([one.weights for one in some]) for some in earlier]
    first = _stacked([one.weights for one in (starts[:1] if len({*map(id, starts)}) == 1 else starts)])
    moments = [
        _stacked([one.moments for one in some if one.moments is not None])
        for some in ([now, earlier[0]] if occasions[0].moved else [])
    ]
    seen = alone, changes, since_first = (
        _Collected(now),
        _Collected(now, earlier[0] if earlier else ()),
        _Collected(now, starts),
    )
    neighbours = neighbours_of(layers)
    for group in alike(layers):
        own = group.of(weights)
        for some in group.stretches(len(now)):
            weight, here = _wide(own[:, some]), group.layers[some]
            _see_alone(alone, group, some, own, neighbours)
            if before:
                start, *others = (_wide(group.of(flat)[:, some].to(device)) for flat in before)
                offered = {"change": weight - start, "earlier": start}
                if others:
                    offered["change_before"] = start - others[0]
                changes.add(here, offered)
            if moments:
                held = [at for at, layer in enumerate(here) if layer.path in occasions[0].moved]
                moment, moment_before = (
                    _wide(group.of(flat)[:, some].to(device)[:, held]) for flat in moments
                )
                changes.add([here[at] for at in held], {"moment": moment, "moment_before": moment_before})
            if starts:
                offered = {"weight": weight, "first": _wide(group.of(first)[:, some].to(device))}
                since_first.add(here, offered, needing="first")
    if before:
        _see_increments(changes, now[0], weights, before[0])
    model = computable(frozenset({"weight"}), "forward")[0].name
    rows = [[Row(one.step, "", "model", -1, model, 0.0)] for one in now]
    for found in (*(one.rows() for one in seen), _spectrum_rows(now, weights)):
        for own_rows, more in zip(rows, found, strict=True):
            own_rows.extend(more)
    return rows


def _stacked(flat: Sequence[Tensor]) -> Tensor:
    """[checkpoints, parameters]; of one checkpoint no copy."""
    if not flat:
        return torch.zeros(0)
    return flat[0].unsqueeze(0) if len(flat) == 1 else torch.stack(list(flat))


def _wide(values: Tensor) -> Tensor:
    """At least 32 bits an entry: a mean of bfloat16 numbers would be one."""
    return values if values.dtype.itemsize >= 4 else values.float()


def _own(layers: Sequence[Layer], flat: Tensor) -> Iterator[tuple[Layer, Tensor]]:
    """Each layer, and its stretch of flat vectors, [..., size]."""
    for group in alike(layers):
        yield from zip(group.layers, group.of(flat).unbind(-2), strict=True)


def _see_alone(
    seen: _Collected, group: Alike, some: slice, all_of_them: Tensor, neighbours: Mapping[str, Layer]
) -> None:
    """Distribution of the weights of some layers of a group."""
    layers, weight = group.layers[some], _wide(all_of_them[:, some])
    centred = weight - weight.mean(dim=-1, keepdim=True)
    seen.add(layers, {"weight": weight, "centred_weight": centred, "sorted_weight": _ordered(weight)})
    places = {layer.path: at for at, layer in enumerate(group.layers)}
    own = [at for at, layer in enumerate(layers) if layer.path in neighbours]
    if own:
        before = _wide(all_of_them[:, [places[neighbours[layers[at].path].path] for at in own]])
        offered = {"weight": weight if len(own) == len(layers) else weight[:, own], "neighbour": before}
        seen.add([layers[at] for at in own], offered, needing="neighbour")


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


def _spectrum_rows(now: Sequence[Snapshot], weights: Tensor) -> list[list[Row]]:
    """Singular values of each layer's largest matrix."""
    rows: list[list[Row]] = [[] for _ in now]
    found = [(layer, matrices_in(layer, own)) for layer, own in _own(now[0].layers, weights)]
    largest = [(layer, max(matrices, key=torch.numel)) for layer, matrices in found if matrices]
    # Of one layer all checkpoints, then of the next one.
    spectra = matrix_spectra([one for _, matrices in largest for one in matrices.unbind(0)])
    entries = computable(frozenset({"spectrum"}), TIER)
    for places, some in spectra:
        of = [(at % len(now), largest[at // len(now)][0]) for at in places]
        for entry in entries:
            bound = entry.function(some)
            sure = (bound.high - bound.low <= _UNSURE * np.abs(bound.value)) | some.whole
            told = zip(*(one.tolist() for one in (bound.value, bound.low, bound.high, sure)), strict=True)
            for (checkpoint, layer), (value, low, high, certified) in zip(of, told, strict=True):
                if math.isfinite(value):
                    place = now[checkpoint].step, layer.path, layer.kind, layer.depth
                    rows[checkpoint].append(Row(*place, entry.name, value, low, high, certified))
    return rows


def _see_increments(seen: _Collected, now: Snapshot, weights: Tensor, before: Tensor) -> None:
    """How the bilinear form of each head's scores moved."""
    later = {layer.path: own for layer, own in _own(now.layers, weights)}
    past = {layer.path: own for layer, own in _own(now.layers, before)}
    keys = {layer.path.rpartition(".")[0]: layer for layer in now.layers if layer.kind == "key"}
    forms: dict[tuple[torch.Size, int], list[tuple[Layer, list[Tensor]]]] = {}
    for layer in now.layers:
        other = keys.get(layer.path.rpartition(".")[0])
        if layer.kind != "query" or other is None or layer.path not in now.heads:
            continue
        queries, groups = now.heads[layer.path]
        found = [
            by_head
            for side in (past, later)
            for one, heads in ((layer, queries), (other, groups))
            if (by_head := _by_head(one, side[one.path].to(weights.device), heads)) is not None
        ]
        if len(found) == 4 and found[0].shape[-2:] == found[1].shape[-2:]:
            forms.setdefault((found[0].shape, queries // groups), []).append((layer, found))
    for (_, shared), some in forms.items():
        # [checkpoints, layers, heads, d_head, width]
        query, key, later_query, later_key = (
            torch.stack(each, dim=1).double() for each in zip(*(found for _, found in some), strict=True)
        )
        if shared > 1:
            key, later_key = (one.repeat_interleave(shared, dim=2) for one in (key, later_key))
        second, third = increment_spectra(query, key, later_query - query, later_key - key)
        seen.add([layer for layer, _ in some], {"second_order": second, "third_order": third})


def _by_head(layer: Layer, own: Tensor, heads: int) -> Tensor | None:
    """A projection as [checkpoints, heads, d_head, width]; None where it does not divide."""
    matrices = matrices_in(layer, own)
    if len(matrices) != 1 or matrices[0].shape[-2] % heads:
        return None
    return torch.unflatten(matrices[0], -2, (heads, -1))


def _ordered(weight: Tensor) -> Tensor:
    """In ascending order; with NumPy on the CPU, which takes a tenth of torch's time."""
    if weight.device.type != "cpu":
        return weight.sort(dim=-1).values
    return torch.from_numpy(np.sort(weight.numpy(), axis=-1))


class _Collected:
    """Values of many layers at several checkpoints, brought from the device in one transfer."""

    def __init__(self, now: Sequence[Snapshot], since: Sequence[Snapshot] = ()) -> None:
        self._places = [
            (one.step, f"since step {since[at].step}" if since else "") for at, one in enumerate(now)
        ]
        self._seen: list[tuple[Sequence[Layer], Quantity, Tensor]] = []

    def add(self, layers: Sequence[Layer], offered: Mapping[str, Tensor], needing: str = "") -> None:
        """Evaluate every quantity of the tier whose inputs are offered for some layers, and that needs one of them."""
        for entry in computable(frozenset(offered), TIER):
            if layers and (not needing or needing in entry.inputs):
                value = entry.function(*(offered[name] for name in entry.inputs))
                self._seen.append((layers, entry, value))

    def rows(self) -> list[list[Row]]:
        """Give each checkpoint a row a value; none where 0 was divided by 0, as for a layer that did not move."""
        rows: list[list[Row]] = [[] for _ in self._places]
        values = fetched([value for _, _, value in self._seen])
        for (layers, entry, _), value in zip(self._seen, values, strict=True):
            worst, heads = value, value
            if by_head := value.ndim > 2:
                worst, heads = value.max(dim=-1) if entry.worst_head == "max" else value.min(dim=-1)
                # A head that is not finite leaves its layer without a value.
                worst = worst.where(value.isfinite().all(dim=-1), math.nan)
            told = zip(rows, self._places, worst.tolist(), heads.tolist(), strict=True)
            for own_rows, (step, batch), at_layers, at_heads in told:
                for layer, own, head in zip(layers, at_layers, at_heads, strict=True):
                    if math.isfinite(own):
                        place = step, layer.path, layer.kind, layer.depth
                        own_rows.append(Row(*place, entry.name, own, batch=batch))
                        if by_head:
                            own_rows.append(Row(*place, f"{entry.name}_head", float(head), batch=batch))
        return rows
