"""Making a large map readable: rows pooled to blocks, checkpoints laid out at true distance. For display only."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hnf_offline.report.chart import Array
from hnf_offline.report.layer_map import LayerMap
from hnf_offline.report.text import common_prefix, shorten


def pooled(grid: LayerMap, *, most_rows: int) -> LayerMap:
    """Pool rows into blocks, by the value farthest from 0, where there are too many rows to draw.

    Returns:
        The map itself where it has few rows, else one row a block.
    """
    if len(grid.rows) <= most_rows:
        return grid
    blocks: dict[str, list[int]] = {}
    for place, row in enumerate(grid.rows):
        blocks.setdefault(row.block, []).append(place)
    groups = list(blocks.items())
    if len(groups) > most_rows:
        share = math.ceil(len(groups) / most_rows)
        groups = [
            (
                f"{groups[start][0]} …",
                [place for _, places in groups[start : start + share] for place in places],
            )
            for start in range(0, len(groups), share)
        ]
    prefix = common_prefix([name for name, _ in groups])
    rows, values = [], []
    for name, places in groups:
        members = [grid.rows[place] for place in places]
        top = max(members, key=lambda row: -math.inf if math.isnan(row.departure) else row.departure)
        rows.append(
            replace(
                top,
                label=shorten(name.removeprefix(prefix), 26),
                layers=tuple(layer for row in members for layer in row.layers),
                kind="block",
                block=name,
            )
        )
        values.append(farthest(grid.values[places]))
    split = [places for _, places in groups]
    columns = np.arange(len(grid.steps))
    # A pooled cell is as certain as the layer it shows.
    chosen = [np.array(places)[_farthest_row(grid.values[places])] for places in split]
    note = f"{len(grid.rows)} layers pooled into {len(rows)} rows, each showing its farthest layer"
    return replace(
        grid,
        rows=tuple(rows),
        values=np.array(values),
        certified=np.array([grid.certified[rows_of, columns] for rows_of in chosen]),
        broken=np.array([grid.broken[places].any(axis=0) for places in split]),
        notes=(note, *grid.notes),
    )


def farthest(values: Array) -> Array:
    """Pool along the first axis: the value farthest from 0, with its sign.

    Returns:
        One value a column, NaN where all are.
    """
    return np.asarray(np.take_along_axis(values, _farthest_row(values)[None], axis=0)[0])


def _farthest_row(values: Array) -> NDArray[np.int64]:
    return np.asarray(np.where(np.isnan(values), -1.0, np.abs(values)).argmax(axis=0))


def column_slots(
    grid: LayerMap, first: float, last: float, most: int = 900
) -> tuple[NDArray[np.int64], float, float]:
    """Lay checkpoints out at true step distance: slot -> checkpoint, -1 where none is near.

    A checkpoint's cell reaches half-way to its neighbours, at most half the usual gap; the rest stays empty.

    Returns:
        For each slot the column of the nearest checkpoint, and the steps at which the slots begin and end.
    """
    steps = grid.steps
    gap = grid.gap
    start, stop = max(steps[0] - gap / 2, first), min(steps[-1] + gap / 2, last)
    smallest = float(np.gcd.reduce(np.diff(steps).astype(np.int64))) if len(steps) > 1 else gap
    even = len(steps) > 1 and np.all(np.diff(steps) % smallest == 0)
    count = round((steps[-1] - steps[0]) / smallest) + 1 if even else most + 1
    if count <= most and smallest == gap:
        start, stop = steps[0] - gap / 2, steps[-1] + gap / 2
    else:
        count = most
    edges = np.linspace(start, stop, count + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    right = np.clip(np.searchsorted(steps, centres), 1, max(len(steps) - 1, 1))
    left = right - 1
    right = np.minimum(right, len(steps) - 1)
    nearest = np.where(centres - steps[left] <= steps[right] - centres, left, right)
    slots = np.where(np.abs(steps[nearest] - centres) <= gap / 2 + 1e-9, nearest, -1)
    return slots.astype(np.int64), float(start), float(stop)


def slot_values(grid: LayerMap, slots: NDArray[np.int64], start: float, stop: float) -> Array:
    """Pool columns into slots where several checkpoints share one: the value farthest from 0 wins.

    Returns:
        Rows x slots, NaN where there is none.
    """
    values = np.where(slots >= 0, grid.values[:, np.maximum(slots, 0)], np.nan)
    width = (stop - start) / len(slots)
    inside = (grid.steps >= start) & (grid.steps <= stop)
    home = np.clip(((grid.steps - start) / width).astype(int), 0, len(slots) - 1)
    crowded, counts = np.unique(home[inside], return_counts=True)
    for slot in crowded[counts > 1]:
        values[:, slot] = farthest(grid.values[:, inside & (home == slot)].T)
    return values
