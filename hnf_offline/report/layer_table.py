"""The layers that left their early level farthest, as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hnf_offline.report.layer_map import LayerMap
from hnf_offline.report.text import number, times


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer, spelled; `share` is the length of its bar, 0..1."""

    layer: str
    kind: str
    baseline: str
    peak: str
    departure: str
    step: str
    share: float


def top_layers(grid: LayerMap | None, most: int = 20) -> tuple[LayerRow, ...]:
    """Rank layers by how far they rose above their own early level.

    Returns:
        At most `most` rows, the farthest first.
    """
    if grid is None:
        return ()
    known = [row for row in grid.rows if not math.isnan(row.departure)]
    ranked = sorted(known, key=lambda row: -row.departure)[:most]
    largest = next((row.departure for row in ranked if math.isfinite(row.departure)), 0.0)
    return tuple(
        LayerRow(
            layer=row.layers[0],
            kind=row.kind,
            baseline=number(row.baseline),
            peak=number(row.peak),
            departure=times(row.departure) if "ratio" in grid.form else number(row.departure),
            step=number(row.peak_step),
            share=min(max(row.departure / largest, 0.0), 1.0) if largest > 0 else 0.0,
        )
        for row in ranked
    )
