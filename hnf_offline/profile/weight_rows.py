"""Rows of the tier `weights`: checkpoints' parameters, and how they differ from those before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from hnf_offline.linalg.vectors import Vectors
from hnf_offline.profile.comparisons import (
    Alone,
    Changes,
    Comparison,
    Moments,
    Neighbours,
    Occasion,
    Starts,
    Stretch,
)
from hnf_offline.profile.side_by_side import MODEL, TIER, Collected, Flats, Held, Target, places_of, tell
from hnf_offline.profile.snapshot import Snapshot, alike, matrices_in
from hnf_offline.quantities.key_query_changes import increment_spectra
from hnf_offline.quantities.registry import computable
from hnf_offline.quantities.weight_spectrum import matrix_spectra
from hnf_offline.run.model.layers import Layer
from hnf_offline.table import Block, Row, Rows

#: An interval this wide, as a share of the value, leaves it uncertified.
_UNSURE = 0.01


def occasion_rows(occasions: Sequence[Occasion], device: torch.device) -> list[Rows]:
    """Measure checkpoints' weights, alone and against those before them; checkpoints that look alike side by side.

    Args:
        occasions: the checkpoints.
        device: where it is computed.

    Returns:
        Rows of the tier `weights` of each; of weights that are not finite only how many.
    """
    rows = [Rows(one.now.step) for one in occasions]
    lots: list[list[int]] = []
    for at, one in enumerate(occasions):
        if not one.now.finite:
            layers, weights = one.now.layers, one.now.weights.to(device)
            own = {layer.path: flat for layer, flat in _own(layers, weights)}
            rows[at] = _nonfinite(one.now.step, layers, [own[layer.path] for layer in layers])
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
    return list(_nonfinite(step, layers, [own[0] if len(own) == 1 else torch.cat(own) for own in parts]))


def _nonfinite(step: int, layers: Sequence[Layer], flat: Sequence[Tensor]) -> Rows:
    entry = computable(frozenset({"weight"}), "forward")[0]
    rows = Rows(step)
    # One transfer for all layers.
    shares = (
        torch.stack([entry.function(own) for own in flat]).cpu().double().numpy() if flat else np.zeros(0)
    )
    whole = np.average(shares, weights=[layer.size for layer in layers]) if flat else 0.0
    rows.add(Block(MODEL, entry.name, np.full((1, 1), whole)), 0)
    rows.add(Block(places_of(layers), entry.name, np.where(shares > 0, shares, np.nan)[None]), 0)
    return rows


def _measure(occasions: Sequence[Occasion], rows: Sequence[Rows], device: torch.device) -> None:
    """Measure checkpoints that look alike; what is measured together is [checkpoints, layers, size]."""
    now, layers = [one.now for one in occasions], occasions[0].now.layers
    targets = [Target(own) for own in rows]
    model = computable(frozenset({"weight"}), "forward")[0].name
    tell(targets, Block(MODEL, model, np.zeros((len(now), 1))))
    held = Held(one for each in occasions for one in (*reversed(each.earlier), each.now))
    weights, here = Flats([one.weights for one in held.snapshots], device), held.at(now)
    comparisons: list[Comparison] = [Alone(targets), Neighbours.of(layers, targets, weights, here)]
    if changes := Changes.of(occasions, rows, held):
        comparisons.append(changes)
    if starts := Starts.of(occasions, rows, device):
        comparisons.append(starts)
    for moved in dict.fromkeys(one.moved for one in occasions if one.moved):
        some = [pair for pair in zip(occasions, rows, strict=True) if pair[0].moved == moved]
        comparisons.append(Moments.of(some, device))
    seen = Collected()
    for group in alike(layers):
        for places in group.stretches(len(held.snapshots)):
            values = Vectors(weights.of(group, places))
            for one in comparisons:
                one.see(seen, Stretch(group, places, values, values[here]))
    flat = weights.some(here).to(device)
    if changes:
        _see_increments(seen, changes.targets, now[0], flat, weights.some(changes.earlier))
    seen.tell()
    _tell_spectra(targets, layers, flat)


def _own(layers: Sequence[Layer], flat: Tensor) -> Iterator[tuple[Layer, Tensor]]:
    """Each layer, and its stretch of flat vectors, [..., size]."""
    for group in alike(layers):
        yield from zip(group.layers, group.of(flat).unbind(-2), strict=True)


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
            tell(targets, Block(places, entry.name, value, (bounds[0], bounds[1], bounds[2])))


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
            torch.stack(each, dim=1) for each in zip(*(found for _, found in some), strict=True)
        )
        # Heads that share a key stand beside each other: [checkpoints, layers, keys, heads of each, d_head, width].
        query, later_query = (torch.unflatten(one, 2, (-1, shared)) for one in (query, later_query))
        key, later_key = key.unsqueeze(3), later_key.unsqueeze(3)
        query, key, later_query, later_key = (one.double() for one in (query, key, later_query, later_key))
        spectra = increment_spectra(query, key, later_query - query, later_key - key)
        second, third = (one.flatten(2, 3) for one in spectra)
        seen.add(targets, [layer for layer, _ in some], {"second_order": second, "third_order": third})


def _by_head(layer: Layer, own: Tensor, heads: int) -> Tensor | None:
    """A projection as [checkpoints, heads, d_head, width]; None where it does not divide."""
    matrices = matrices_in(layer, own)
    if len(matrices) != 1 or matrices[0].shape[-2] % heads:
        return None
    return torch.unflatten(matrices[0], -2, (heads, -1))
