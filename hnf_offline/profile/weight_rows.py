"""Rows of the tier `weights`: checkpoints' parameters, and how they differ from those before."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from hnf_offline.linalg.vectors import Vectors
from hnf_offline.profile.side_by_side import (
    TIER,
    Collected,
    Flats,
    Held,
    Target,
    places_of,
    successive,
    tell,
)
from hnf_offline.profile.snapshot import Alike, Snapshot, alike, matrices_in, same_shapes
from hnf_offline.quantities.key_query_changes import increment_spectra
from hnf_offline.quantities.registry import computable
from hnf_offline.quantities.weight_spectrum import matrix_spectra
from hnf_offline.run.model.layers import Layer
from hnf_offline.table import Row, Rows

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


def occasion_rows(occasions: Sequence[Occasion], device: torch.device) -> list[Rows]:
    """Measure checkpoints' weights, alone and against those before them; checkpoints that look alike side by side.

    Args:
        occasions: the checkpoints.
        device: where it is computed.

    Returns:
        Rows of the tier `weights` of each; of weights that are not finite only how many.
    """
    rows = [Rows() for _ in occasions]
    lots: list[list[int]] = []
    for at, one in enumerate(occasions):
        if not one.now.finite:
            layers, weights = one.now.layers, one.now.weights.to(device)
            own = {layer.path: flat for layer, flat in _own(layers, weights)}
            shares = _rows_of_nonfinite(one.now.step, layers, [own[layer.path] for layer in layers])
            rows[at] = Rows.of(shares)
            continue
        lot = next((lot for lot in lots if occasions[lot[0]].looks_like(one)), None)
        if lot is None:
            lots.append(lot := [])
        lot.append(at)
    for lot in lots:
        _measure([occasions[at] for at in lot], [rows[at] for at in lot], device)
    return rows


def alone_rows(now: Snapshot) -> list[Row]:
    """Measure the weights of one checkpoint: their distribution, and singular values of every matrix.

    Args:
        now: the checkpoint.

    Returns:
        Rows of the tier `weights` that need no other checkpoint.
    """
    return list(occasion_rows([Occasion(now)], now.weights.device)[0])


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


def _measure(occasions: Sequence[Occasion], rows: Sequence[Rows], device: torch.device) -> None:
    """Measure checkpoints that look alike; what is measured together is [checkpoints, layers, size]."""
    now = [one.now for one in occasions]
    alone = [Target(own, one.step) for own, one in zip(rows, now, strict=True)]
    model = computable(frozenset({"weight"}), "forward")[0].name
    tell(alone, ([""], ["model"], [-1]), model, np.zeros((len(now), 1)))
    layers, neighbours = now[0].layers, neighbours_of(now[0].layers)
    held = Held(one for each in occasions for one in (*reversed(each.earlier), each.now))
    weights, here = Flats([one.weights for one in held.snapshots], device), held.at(now)
    changes = _Changes.of(occasions, rows, held)
    starts = _Starts.of(occasions, rows, device)
    moments = [
        _Moments.of([pair for pair in zip(occasions, rows, strict=True) if pair[0].moved == moved], device)
        for moved in dict.fromkeys(one.moved for one in occasions)
        if moved
    ]
    seen = Collected()
    for group in alike(layers):
        for some in group.stretches(len(held.snapshots)):
            stretch = Vectors(weights.of(group, some))
            weight = stretch[here]
            _see_alone(seen, alone, group.layers[some], weight)
            _see_neighbours(seen, alone, group, some, weight, weights.of, here, neighbours)
            if changes is not None:
                changes.see(seen, group.layers[some], stretch)
            if starts is not None:
                starts.see(seen, group, some, weight)
            for one in moments:
                one.see(seen, group, some)
    flat = weights.some(here)
    if changes is not None:
        _see_increments(seen, changes.targets, now[0], flat, weights.some(changes.earlier))
    seen.tell()
    _tell_spectra(alone, layers, flat)


def _since(occasions: Sequence[Occasion], rows: Sequence[Rows], others: Sequence[Snapshot]) -> list[Target]:
    return [
        Target(own, one.now.step, f"since step {other.step}")
        for one, own, other in zip(occasions, rows, others, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Changes:
    """Changes between checkpoints that follow one another, each taken once; places are slices where they can be.

    Attributes:
        targets: one a checkpoint.
        later: places of the snapshots that the changes lead to.
        before: places of those that they lead from.
        change: places among the changes of the one into each checkpoint.
        earlier: places among the snapshots of what each checkpoint changed from.
        change_before: places among the changes of the one before; None where there is none.
    """

    targets: Sequence[Target]
    later: slice | list[int]
    before: slice | list[int]
    change: slice | list[int]
    earlier: slice | list[int]
    change_before: slice | list[int] | None

    @classmethod
    def of(cls, occasions: Sequence[Occasion], rows: Sequence[Rows], held: Held) -> _Changes | None:
        if not occasions[0].earlier:
            return None
        earlier = [one.earlier[0] for one in occasions]
        pairs = [list(pairwise((one.now, *one.earlier))) for one in occasions]
        intervals = {(id(later), id(before)): (later, before) for own in pairs for later, before in own[::-1]}
        place = {interval: at for at, interval in enumerate(intervals)}
        last, *others = (
            [place[id(one), id(other)] for one, other in own] for own in zip(*pairs, strict=True)
        )
        return cls(
            _since(occasions, rows, earlier),
            held.at(later for later, _ in intervals.values()),
            held.at(before for _, before in intervals.values()),
            successive(last),
            held.at(earlier),
            successive(others[0]) if others else None,
        )

    def see(self, seen: Collected, layers: Sequence[Layer], stretch: Vectors) -> None:
        changes = Vectors(stretch[self.later] - stretch[self.before])
        offered = {"change": changes[self.change], "earlier": stretch[self.earlier]}
        if self.change_before is not None:
            offered["change_before"] = changes[self.change_before]
        seen.add(self.targets, layers, offered)


@dataclass(frozen=True, slots=True)
class _Starts:
    """The first checkpoint of the run, of each checkpoint or, mostly, of all of them."""

    targets: Sequence[Target]
    flats: Flats
    places: slice | list[int]

    @classmethod
    def of(cls, occasions: Sequence[Occasion], rows: Sequence[Rows], device: torch.device) -> _Starts | None:
        starts = [one.first for one in occasions if one.first is not None]
        if not starts:
            return None
        held = Held(starts)
        places = slice(0, 1) if len(held.snapshots) == 1 else held.at(starts)
        flats = Flats([one.weights for one in held.snapshots], device)
        return cls(_since(occasions, rows, starts), flats, places)

    def see(self, seen: Collected, group: Alike, some: slice, weight: Vectors) -> None:
        first = Vectors(self.flats.of(group, some))[self.places]
        seen.add(self.targets, group.layers[some], {"weight": weight, "first": first}, needing="first")


@dataclass(frozen=True, slots=True)
class _Moments:
    """The optimizer's first moments at checkpoints that have them of the same layers, and before."""

    targets: Sequence[Target]
    flats: Flats
    now: slice | list[int]
    before: slice | list[int]
    moved: frozenset[str]

    @classmethod
    def of(cls, some: Sequence[tuple[Occasion, Rows]], device: torch.device) -> _Moments:
        occasions, rows = zip(*some, strict=True)
        earlier = [one.earlier[0] for one in occasions]
        held = Held(one for pair in zip(earlier, (one.now for one in occasions), strict=True) for one in pair)
        flats = Flats([one.moments for one in held.snapshots if one.moments is not None], device)
        now, before = held.at(one.now for one in occasions), held.at(earlier)
        return cls(_since(occasions, rows, earlier), flats, now, before, occasions[0].moved)

    def see(self, seen: Collected, group: Alike, some: slice) -> None:
        held = [at for at, layer in enumerate(group.layers[some]) if layer.path in self.moved]
        if held:
            moments = Vectors(self.flats.of(group, some)[:, successive(held)])
            offered = {"moment": moments[self.now], "moment_before": moments[self.before]}
            seen.add(self.targets, [group.layers[some][at] for at in held], offered)


def _own(layers: Sequence[Layer], flat: Tensor) -> Iterator[tuple[Layer, Tensor]]:
    """Each layer, and its stretch of flat vectors, [..., size]."""
    for group in alike(layers):
        yield from zip(group.layers, group.of(flat).unbind(-2), strict=True)


def _see_alone(seen: Collected, targets: Sequence[Target], layers: Sequence[Layer], weight: Vectors) -> None:
    """Distribution of the weights of some layers."""
    centred = Vectors(weight.values - weight.values.mean(dim=-1, keepdim=True))
    offered = {"weight": weight, "centred_weight": centred, "sorted_weight": _ordered(weight.values)}
    seen.add(targets, layers, offered)


def _see_neighbours(
    seen: Collected,
    targets: Sequence[Target],
    group: Alike,
    some: slice,
    weight: Vectors,
    read: Callable[[Alike, slice | list[int]], Tensor],
    here: slice | list[int],
    neighbours: Mapping[str, Layer],
) -> None:
    """Distance of some layers to their like in the block before."""
    places = {layer.path: at for at, layer in enumerate(group.layers)}
    layers = group.layers[some]
    own = [at for at, layer in enumerate(layers) if layer.path in neighbours]
    if own:
        like = [places[neighbours[layers[at].path].path] for at in own]
        if some.start <= min(like) and max(like) < some.stop:
            neighbour = weight[:, successive([at - some.start for at in like])]
        else:
            neighbour = Vectors(read(group, successive(like))[here])
        offered = {"weight": weight[:, successive(own)], "neighbour": neighbour}
        seen.add(targets, [layers[at] for at in own], offered, needing="neighbour")


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


def _tell_spectra(targets: Sequence[Target], layers: Sequence[Layer], weights: Tensor) -> None:
    """Singular values of each layer's largest matrix."""
    found = [(layer, matrices_in(layer, own)) for layer, own in _own(layers, weights)]
    largest = [(layer, max(matrices, key=torch.numel)) for layer, matrices in found if matrices]
    for at, spectra in matrix_spectra([matrices for _, matrices in largest]):
        places = places_of([largest[one][0] for one in at])
        for entry in computable(frozenset({"spectrum"}), TIER):
            bound = entry.function(spectra)
            sure = (bound.high - bound.low <= _UNSURE * np.abs(bound.value)) | spectra.whole
            value, *bounds = (
                each.reshape(len(at), len(targets)).T for each in (bound.value, bound.low, bound.high, sure)
            )
            tell(targets, places, entry.name, value, (bounds[0], bounds[1], bounds[2]))


def _see_increments(
    seen: Collected, targets: Sequence[Target], now: Snapshot, weights: Tensor, before: Tensor
) -> None:
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
        seen.add(targets, [layer for layer, _ in some], {"second_order": second, "third_order": third})


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
