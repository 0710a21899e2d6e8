"""From what was observed of a map to rows of the long table, each with its error bar."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hnf_offline.quantities.registry import Quantity, computable
from hnf_offline.table import Row


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was measured.

    Attributes:
        step: the checkpoint's step.
        path: the module's path, "" for the whole model.
        kind: one of `table.KINDS`.
        depth: position in forward order.
        batch: what was replayed, in words.
    """

    step: int
    path: str
    kind: str
    depth: int
    batch: str


@dataclass(frozen=True, slots=True)
class MapObservations:
    """What was seen of a map.

    Attributes:
        values: observation -> one value an item, on any device.
        errors: observation -> its error, one value an item; absent where it is exact.
        certified: observation -> whether the item's value is sure, one value an item; absent where it is.
        from_below: observations that are lower bounds without an upper end.
    """

    values: Mapping[str, Tensor]
    errors: Mapping[str, Tensor] = field(default_factory=dict)
    certified: Mapping[str, Tensor] = field(default_factory=dict)
    from_below: frozenset[str] = frozenset()


def rows_of(place: Place, seen: MapObservations, *, of: str | None = None) -> list[Row]:
    """Evaluate every quantity that can be computed from what was seen.

    Error bars: a lower bound has no upper end; a largest value lies between the one found and what it would be if
    the observations were off by their errors; a median's bar is the range over the items, errors included.

    Args:
        place: where it was seen.
        seen: what was seen.
        of: only quantities that need this observation.

    Returns:
        Rows of the tier `full`.
    """
    # A few numbers an item: one transfer a map, and the rest is arithmetic on the host.
    values = {name: value.detach().to("cpu", torch.float64) for name, value in seen.values.items()}
    errors = {name: value.detach().to("cpu", torch.float64) for name, value in seen.errors.items()}
    certified = {name: value.cpu() for name, value in seen.certified.items()}
    rows: list[Row] = []
    for entry in computable(frozenset(values), "full"):
        if of is not None and of not in entry.inputs:
            continue
        items = entry.function(**{name: values[name] for name in entry.inputs})
        value = _combined(entry, items)
        low, high = _bar(
            entry, items, values, {name: errors[name] for name in entry.inputs if name in errors}
        )
        if seen.from_below & set(entry.inputs):
            low, high = value, None
        sure = all(bool(certified[name].all()) for name in entry.inputs if name in certified)
        where = place.step, place.path, place.kind, place.depth
        rows.append(Row(*where, entry.name, value, low, high, sure, place.batch))
    return rows


def _combined(entry: Quantity, items: Tensor) -> float:
    if bool(items.isnan().any()):
        return math.nan  # a finding, which a median would hide
    return float(items.amax() if entry.over_batches == "max" else items.median())


def _bar(
    entry: Quantity, items: Tensor, values: Mapping[str, Tensor], errors: Mapping[str, Tensor]
) -> tuple[float | None, float | None]:
    largest = entry.over_batches == "max"
    if bool(items.isnan().any()) or (largest and not errors):
        return None, None
    candidates = [items]
    for name, error in errors.items():
        # A Ritz value never overshoots: its error has one side.
        for sign in (1,) if name == "largest_singular_values" else (1, -1):
            moved = {**values, name: values[name] + sign * error}
            candidates.append(entry.function(**{key: moved[key] for key in entry.inputs}))
    if largest:
        ends = [float(one.amax()) for one in candidates]
        return min(ends), max(ends)
    return min(float(one.amin()) for one in candidates), max(float(one.amax()) for one in candidates)
