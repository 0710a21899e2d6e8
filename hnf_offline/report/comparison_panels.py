"""Two runs on one step axis: both losses, the strongest quantity of each, and the map of their ratio."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from hnf_offline.comparison import Comparison, Separation
from hnf_offline.report.chart import (
    Array,
    Chart,
    Level,
    Line,
    Mark,
    Strip,
    Window,
    fitting_cap,
    fitting_scale,
    not_finite_windows,
)
from hnf_offline.report.layer_map import PREFERRED, LayerMap, MapRow, raw_grid
from hnf_offline.report.series import EDGE_AT_ONE, STRONGEST, logged, measured_line, symbol, usual_gap
from hnf_offline.report.text import block, common_prefix, number, shorten, times

if TYPE_CHECKING:
    import polars as pl


def both_losses(
    comparison: Comparison,
    log_a: pl.DataFrame | None,
    log_b: pl.DataFrame | None,
    profile_a: pl.DataFrame,
    profile_b: pl.DataFrame,
) -> Chart | None:
    """Build the picture of the first screen: A blue and solid, B orange and dashed, the parting as a line.

    Returns:
        The chart, None where neither run has a loss or a quantity.
    """
    strips = [loss_strip(log_a, log_b, 190)]
    quantity = _common_quantity(profile_a, profile_b)
    if quantity is not None:
        lines = [
            replace(line, dash=dash)
            for line, dash in (
                (measured_line(profile_a, quantity, "", "A", "a"), "solid"),
                (measured_line(profile_b, quantity, "", "B", "b"), "dashed"),
            )
            if line is not None
        ]
        levels = (Level(1.0, "1 = edge of stability"),) if quantity in EDGE_AT_ONE else ()
        strips.append(_strip(symbol(quantity), lines, 120, levels))
    shown = tuple(strip for strip in strips if strip is not None)
    if not shown:
        return None
    steps = np.concatenate([line.steps for strip in shown for line in strip.lines])
    return Chart(
        name="losses",
        title=_title(comparison),
        first=float(steps.min()),
        last=float(max(steps.max(), steps.min() + 1)),
        strips=shown,
        marks=parting_marks(comparison),
        axis=str(comparison.aligned.get("axis", "step")),
    )


def loss_strip(log_a: pl.DataFrame | None, log_b: pl.DataFrame | None, height: int) -> Strip | None:
    """Make a strip of both losses.

    Returns:
        The strip, None where neither was logged.
    """
    lines = [
        Line(label, role, steps, values, dash=dash)
        for label, role, dash, (steps, values) in (
            ("A", "a", "solid", logged(log_a, "loss")),
            ("B", "b", "dashed", logged(log_b, "loss")),
        )
        if steps.size
    ]
    return _strip("loss", lines, height, ()) if lines else None


def _strip(label: str, lines: list[Line], height: int, levels: tuple[Level, ...]) -> Strip:
    every = np.concatenate([line.values for line in lines])
    windows: list[Window] = []
    for line in lines:
        windows += [
            replace(window, label=f"{line.label}: {window.label}")
            for window in not_finite_windows(line.steps, line.values)
        ]
    return Strip(
        label=label,
        lines=tuple(lines),
        levels=levels,
        windows=tuple(windows),
        scale=fitting_scale(every),
        cap=fitting_cap(every),
        height=height,
    )


def parting_marks(comparison: Comparison) -> tuple[Mark, ...]:
    """Mark where the loss parts, and where the first other quantity does.

    Returns:
        At most two vertical lines.
    """
    loss = next(
        (one for one in comparison.separations if one.quantity == "loss" and one.step is not None), None
    )
    other = first_parting(comparison)
    marks = []
    if other is not None and other.step is not None:
        where = f", {shorten(other.layer, 34)}" if other.layer else ""
        marks.append(
            Mark(other.step, f"{symbol(other.quantity)}{where} parts at {other.step:,}", "dashed", "parting")
        )
    if loss is not None and loss.step is not None:
        marks.append(Mark(loss.step, f"loss parts at {loss.step:,}", "solid", "parting"))
    return tuple(marks)


def first_parting(comparison: Comparison) -> Separation | None:
    """Find what parts first apart from the loss and the learning rate, which was set and not measured.

    Returns:
        A separation, None where nothing parts.
    """
    set_not_measured = {"loss", "learning_rate", "optimizer.learning_rate"}
    parted = [
        one for one in comparison.separations if one.step is not None and one.quantity not in set_not_measured
    ]
    return min(parted, key=lambda one: one.step or 0, default=None)


def _common_quantity(profile_a: pl.DataFrame, profile_b: pl.DataFrame) -> str | None:
    import polars as pl

    present = [
        set(profile.filter(pl.col("layer") == "")["quantity"].unique().to_list())
        for profile in (profile_a, profile_b)
    ]
    return next((quantity for quantity in STRONGEST if quantity in present[0] & present[1]), None)


def _title(comparison: Comparison) -> str:
    loss = next((one for one in comparison.separations if one.quantity == "loss"), None)
    if loss is None:
        return "The losses could not be compared"
    if loss.step is None:
        return "The losses of A and B never part durably"
    return f"The losses part at step {loss.step:,}: A {number(loss.a)}, B {number(loss.b)}"


def ratio_map(
    comparison: Comparison,
    log_a: pl.DataFrame | None,
    log_b: pl.DataFrame | None,
    profile_a: pl.DataFrame,
    profile_b: pl.DataFrame,
) -> LayerMap | None:
    """Build the map of log(A/B) over the common layers and checkpoints.

    Returns:
        The map, None where there is no common layer or checkpoint.
    """
    present = [
        set(one.filter(one["layer"] != "")["quantity"].unique().to_list()) for one in (profile_a, profile_b)
    ]
    quantity = next((name for name in PREFERRED if name in present[0] & present[1]), None)
    if quantity is None:
        return None
    of_a, of_b = raw_grid(profile_a, (quantity,)), raw_grid(profile_b, (quantity,))
    if of_a is None or of_b is None:
        return None
    in_b = {layer: place for place, layer in enumerate(of_b[0])}
    layers = [layer for layer in of_a[0] if layer in in_b]
    steps = np.intersect1d(of_a[2], of_b[2])
    if not layers or not steps.size:
        return None
    rows_a = np.array([of_a[0].index(layer) for layer in layers])
    rows_b = np.array([in_b[layer] for layer in layers])
    cut_a = np.ix_(rows_a, np.searchsorted(of_a[2], steps))
    cut_b = np.ix_(rows_b, np.searchsorted(of_b[2], steps))
    a, b = of_a[3][cut_a], of_b[3][cut_b]
    with np.errstate(divide="ignore", invalid="ignore"):
        shown = np.where((a > 0) & (b > 0), np.log(a) - np.log(b), np.nan)
    kinds = [of_a[1][row] for row in rows_a]
    rows = _rows(layers, kinds, steps, a, shown)
    finite = np.abs(shown[np.isfinite(shown)])
    limit = (
        max(min(float(finite.max()), 3 * float(np.quantile(finite, 0.995))), math.log(1.1))
        if finite.size
        else 1.0
    )
    gap = usual_gap(np.union1d(of_a[2], of_b[2])) or 1.0
    first, last = _range(log_a, log_b, float(steps[0] - gap / 2), float(steps[-1] + gap / 2))
    strip = loss_strip(log_a, log_b, 70)
    return LayerMap(
        name="ratio_map",
        title=_map_title(rows, quantity),
        quantity=quantity,
        form="log ratio of A to B",
        rows=rows,
        steps=steps,
        values=shown,
        certified=of_a[4][cut_a] & of_b[4][cut_b],
        broken=np.isinf(a) | np.isinf(b),
        gap=gap,
        limit=limit,
        strip=Chart(
            name="ratio_map_loss",
            title="Both losses on the same steps as the map below",
            first=first,
            last=last,
            strips=() if strip is None else (strip,),
            marks=parting_marks(comparison),
        ),
        notes=_notes(finite, limit, len(of_a[0]) + len(of_b[0]) - 2 * len(layers)),
    )


def _range(
    log_a: pl.DataFrame | None, log_b: pl.DataFrame | None, start: float, stop: float
) -> tuple[float, float]:
    steps = np.concatenate([logged(log, "loss")[0] for log in (log_a, log_b)])
    if steps.size == 0 or steps.max() - steps.min() > 4 * (stop - start):
        return start, stop
    return min(start, float(steps.min())), max(stop, float(steps.max()))


def _rows(layers: list[str], kinds: list[str], steps: Array, a: Array, shown: Array) -> tuple[MapRow, ...]:
    prefix = common_prefix(layers)
    rows = []
    for place, layer in enumerate(layers):
        size = np.where(np.isnan(shown[place]), -np.inf, np.abs(shown[place]))
        at = int(np.argmax(size))
        known = bool(np.isfinite(size[at]))
        rows.append(
            MapRow(
                label=shorten(layer.removeprefix(prefix), 26),
                layers=(layer,),
                kind=kinds[place],
                block=block(layer),
                baseline=None,
                peak=float(a[place, at]) if known else None,
                peak_step=int(steps[at]) if known else None,
                departure=float(shown[place, at]) if known else math.nan,
            )
        )
    return tuple(rows)


def _map_title(rows: tuple[MapRow, ...], quantity: str) -> str:
    known = [row for row in rows if not math.isnan(row.departure)]
    if not known:
        return f"{symbol(quantity)} per layer: no common positive value"
    top = max(known, key=lambda row: abs(row.departure))
    return (
        f"{symbol(quantity)} per layer, A over B: farthest apart in {shorten(top.layers[0], 60)} "
        f"at step {top.peak_step:,}, {times(top.departure)}"
    )


def _notes(finite: Array, limit: float, unshared: int) -> tuple[str, ...]:
    notes = ["red: A is higher; blue: B is higher"]
    if finite.size and finite.max() > limit:
        notes.append(f"darkest from {times(limit)} on; the largest is {times(float(finite.max()))}")
    if unshared:
        notes.append(f"{unshared:,} layers of only one run are not shown")
    return tuple(notes)
