"""The map of layers over steps: which layer left its own early level, and when. Pooled for display only."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hnf_offline.findings import Findings
from hnf_offline.report.chart import Array, Chart
from hnf_offline.report.key_picture import loss_strip, spike_marks, step_range
from hnf_offline.report.series import logged, symbol, usual_gap
from hnf_offline.report.text import block, common_prefix, number, plural, shorten, times

if TYPE_CHECKING:
    import polars as pl

#: What the first map shows, the best first.
PREFERRED = (
    "hessian.stability_ratio",
    "hessian.lambda_max",
    "gradient.norm",
    "adam.lag_rms",
    "attention.logit_max",
)
PROXIES = ("proxy.softmax_log10", "proxy.norm_log10", "proxy.cross_entropy_log10")
#: Bands of the source documents in log10, and how each is drawn.
PROXY_BANDS = (3.0, 6.0, 9.0)
BAND_NAMES = ("■ low (<1e3)", "▓ medium (<1e6)", "█ high (<1e9)", "!!! danger (>1e9)")
#: Checkpoints that make a layer's own early level.
EARLY = 5


@dataclass(frozen=True, slots=True)
class MapRow:
    """One row of the map.

    Attributes:
        label: short name.
        layers: the modules it stands for, one unless rows were pooled.
        kind: kind of the layer, "block" where rows were pooled.
        block: block it belongs to.
        baseline: its own early level, None where it has none.
        peak: raw value where it departs most, None where nothing was measured.
        peak_step: step of that.
        departure: displayed value there.
    """

    label: str
    layers: tuple[str, ...]
    kind: str
    block: str
    baseline: float | None
    peak: float | None
    peak_step: int | None
    departure: float


@dataclass(frozen=True, slots=True, eq=False)
class LayerMap:
    """Layers in forward order, checkpoints at true step distance.

    Attributes:
        name: file name of the figure, without ending.
        title: one sentence that states the finding.
        quantity: what is shown.
        form: "log ratio" (to the row's own early level), "difference" (from it), "log ratio of A to B"
            or "bands".
        rows: from top to bottom.
        steps: step of each column, ascending.
        values: displayed values, rows x steps; NaN where nothing was measured.
        certified: False where a solver stopped early.
        broken: True where the measured value is not finite.
        gap: usual number of steps between checkpoints: no cell is wider.
        limit: displayed values beyond +-limit share the darkest colour.
        strip: loss with spike marks on the same step range.
        notes: what was pooled or cut, in words.
    """

    name: str
    title: str
    quantity: str
    form: str
    rows: tuple[MapRow, ...]
    steps: Array
    values: Array
    certified: NDArray[np.bool_]
    broken: NDArray[np.bool_]
    gap: float
    limit: float
    strip: Chart
    notes: tuple[str, ...] = ()


def layer_maps(
    findings: Findings, run_log: pl.DataFrame | None, profile: pl.DataFrame
) -> tuple[LayerMap, ...]:
    """Build the maps of the page: departures from the early level, unstable mass, the documents' proxies.

    Returns:
        Those of the three that were measured per layer.
    """
    present = set(profile.filter(profile["layer"] != "")["quantity"].unique().to_list())
    chosen = [next((quantity for quantity in PREFERRED if quantity in present), None)]
    chosen.append("hessian.unstable_mass" if "hessian.unstable_mass" in present else None)
    maps = [
        layer_map(findings, run_log, profile, (quantity,), f"map_{place}")
        for place, quantity in enumerate(chosen, start=1)
        if quantity is not None
    ]
    proxies = tuple(quantity for quantity in PROXIES if quantity in profile["quantity"].unique().to_list())
    if proxies:
        maps.append(layer_map(findings, run_log, profile, proxies, "map_3"))
    return tuple(one for one in maps if one is not None)


def layer_map(
    findings: Findings,
    run_log: pl.DataFrame | None,
    profile: pl.DataFrame,
    quantities: tuple[str, ...],
    name: str,
) -> LayerMap | None:
    """Build one map.

    Returns:
        The map, None where nothing was measured per layer.
    """
    raw = raw_grid(profile, quantities)
    if raw is None:
        return None
    layers, kinds, steps, values, certified = raw
    form = _form(quantities)
    measured = ~np.isnan(values)
    shown, baselines = _displayed(values, form)
    broken = measured & ~np.isfinite(values) | _lost(profile, quantities, layers, steps)
    rows = _rows(layers, kinds, steps, values, shown, baselines)
    limit = _limit(shown, form)
    gap = usual_gap(np.unique(profile["step"].to_numpy().astype(np.float64))) or 1.0
    first, last = _span(findings, run_log, profile, steps, gap)
    return LayerMap(
        name=name,
        title=_title(rows, quantities, form),
        quantity=quantities[0] if len(quantities) == 1 else "proxy",
        form=form,
        rows=rows,
        steps=steps,
        values=shown,
        certified=certified,
        broken=broken,
        gap=gap,
        limit=limit,
        strip=loss_above(findings, run_log, f"{name}_loss", first, last),
        notes=_notes(shown, form, limit, certified & measured, measured),
    )


def raw_grid(
    profile: pl.DataFrame, quantities: tuple[str, ...]
) -> tuple[list[str], list[str], Array, Array, NDArray[np.bool_]] | None:
    """Arrange the long table as layers (forward order) x steps.

    Returns:
        Layers, kinds, steps, values (NaN where absent) and certified; None where there is no row.
    """
    import polars as pl

    rows = profile.filter(pl.col("quantity").is_in(quantities))
    if len(quantities) == 1:
        rows = rows.filter(pl.col("layer") != "")
    if rows.height == 0:
        return None
    order = rows.group_by("layer").agg(pl.col("depth").max(), pl.col("kind").first())
    # The whole model (log Z, p_min) comes after the last layer: it is what the head feeds.
    order = order.sort([pl.col("layer") == "", "depth", "layer"])
    layers = order["layer"].to_list()
    steps = rows["step"].unique().sort()
    row_of = {layer: place for place, layer in enumerate(layers)}
    places = np.array([row_of[layer] for layer in rows["layer"].to_list()])
    columns = np.searchsorted(steps.to_numpy(), rows["step"].to_numpy())
    values = np.full((len(layers), len(steps)), np.nan)
    certified = np.ones(values.shape, dtype=np.bool_)
    values[places, columns] = rows["value"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    certified[places, columns] = rows["certified"].fill_null(False).to_numpy()
    return layers, order["kind"].to_list(), steps.cast(pl.Float64).to_numpy().copy(), values, certified


def _lost(
    profile: pl.DataFrame, quantities: tuple[str, ...], layers: list[str], steps: Array
) -> NDArray[np.bool_]:
    # Find cells whose value was measured and is NaN: `raw_grid` alone cannot tell them from absent ones.
    import polars as pl

    lost = np.zeros((len(layers), len(steps)), dtype=np.bool_)
    rows = profile.filter(pl.col("quantity").is_in(quantities) & pl.col("value").is_nan())
    row_of = {layer: place for place, layer in enumerate(layers)}
    for layer, step in rows.select("layer", "step").iter_rows():
        if layer in row_of:
            lost[row_of[layer], int(np.searchsorted(steps, step))] = True
    return lost


def _form(quantities: tuple[str, ...]) -> str:
    if quantities[0] in PROXIES:
        return "bands"
    return "difference" if quantities == ("hessian.unstable_mass",) else "log ratio"


def _displayed(values: Array, form: str) -> tuple[Array, Array]:
    # Set every row against its own early level: the median of its first measured checkpoints.
    finite = np.isfinite(values)
    if form == "bands":
        return np.where(np.isposinf(values), PROXY_BANDS[-1] + 1, np.where(finite, values, np.nan)), np.full(
            len(values), np.nan
        )
    usable = finite & (values > 0) if form == "log ratio" else finite
    baselines = np.array([
        float(np.median(row[good][:EARLY])) if good.any() else np.nan
        for row, good in zip(values, usable, strict=True)
    ])
    if form == "difference":
        return np.where(finite, values, np.nan) - baselines[:, None], baselines
    with np.errstate(divide="ignore", invalid="ignore"):
        shown = np.log(np.where(usable, values, np.nan)) - np.log(baselines)[:, None]
        shown = np.where(np.isposinf(values), np.inf, shown)
        shown = np.where(finite & (values <= 0) & ~np.isnan(baselines)[:, None], -np.inf, shown)
    return shown, baselines


def _rows(
    layers: list[str], kinds: list[str], steps: Array, values: Array, shown: Array, baselines: Array
) -> tuple[MapRow, ...]:
    prefix = common_prefix(layers)
    rows = []
    for place, layer in enumerate(layers):
        departure = np.where(np.isnan(shown[place]), -np.inf, shown[place])
        at = int(np.argmax(departure))
        known = not np.isnan(shown[place]).all()
        rows.append(
            MapRow(
                label=shorten(layer.removeprefix(prefix), 27),
                layers=(layer,),
                kind=kinds[place],
                block=block(layer),
                baseline=None if np.isnan(baselines[place]) else float(baselines[place]),
                peak=float(values[place, at]) if known else None,
                peak_step=int(steps[at]) if known else None,
                departure=float(departure[at]) if known else math.nan,
            )
        )
    return tuple(rows)


def _limit(shown: Array, form: str) -> float:
    if form == "bands":
        return PROXY_BANDS[-1]
    finite = np.abs(shown[np.isfinite(shown)])
    if finite.size == 0:
        return 1.0
    floor = 0.02 if form == "difference" else math.log(2)
    # One cell in two hundred may be three times as far out before the darkest colour is shared.
    return max(min(float(finite.max()), 3 * float(np.quantile(finite, 0.995))), floor)


def _span(
    findings: Findings, run_log: pl.DataFrame | None, profile: pl.DataFrame, steps: Array, gap: float
) -> tuple[float, float]:
    # All of the log, unless the checkpoints fill less than a quarter of it.
    start, stop = steps[0] - gap / 2, steps[-1] + gap / 2
    first, last = step_range(findings, run_log, profile)
    if last - first > 4 * (stop - start):
        return float(start - 0.1 * (stop - start)), float(stop + 0.1 * (stop - start))
    return float(min(start, first)), float(max(stop, last))


def loss_above(
    findings: Findings, run_log: pl.DataFrame | None, name: str, first: float, last: float
) -> Chart:
    """Make the loss strip above a map, on the map's own step range.

    Returns:
        A chart; without a log it has no strip and only marks.
    """
    strip = loss_strip(run_log, height=70) if logged(run_log, "loss")[0].size else None
    return Chart(
        name=name,
        title="Loss on the same steps as the map below",
        first=first,
        last=last,
        strips=() if strip is None else (strip,),
        marks=tuple(mark for mark in spike_marks(findings) if first <= mark.step <= last),
    )


def _title(rows: tuple[MapRow, ...], quantities: tuple[str, ...], form: str) -> str:
    known = [row for row in rows if not math.isnan(row.departure)]
    if not known:
        return f"{symbol(quantities[0])} per layer: no finite value"
    top = max(known, key=lambda row: row.departure)
    where = f"{shorten(top.layers[0], 60)} at step {top.peak_step:,}"
    if form == "bands":
        return f"Component estimates of the source documents: highest 1e{number(top.departure, 2)} in {where}"
    if form == "difference":
        return (
            f"The top eigenvector's mass moved most into {where}: "
            f"{number(top.baseline or 0.0, 2)} to {number(top.peak, 2)}"
        )
    if math.isinf(top.departure):
        return f"{symbol(quantities[0])} per layer: infinite in {where}"
    return f"{symbol(quantities[0])} per layer: rose most in {where}, {times(top.departure)} its early level"


def _notes(
    shown: Array, form: str, limit: float, certified: NDArray[np.bool_], measured: NDArray[np.bool_]
) -> tuple[str, ...]:
    notes = []
    if form != "bands":
        notes.append(f"early level: median of each layer's first {EARLY} checkpoints")
        finite = np.abs(shown[np.isfinite(shown)])
        if finite.size and finite.max() > limit:
            spelled = times(limit) if form == "log ratio" else number(limit, 2)
            most = times(float(finite.max())) if form == "log ratio" else number(float(finite.max()), 2)
            notes.append(f"darkest from {spelled} on; the largest departure is {most}")
    below = int(np.isneginf(shown).sum())
    if below:
        notes.append(f"{plural(below, 'cell')} at or below 0 drawn as lowest")
    open_cells = int(measured.sum() - certified.sum())
    if open_cells:
        notes.append(f"{open_cells:,} of {plural(int(measured.sum()), 'cell')} not certified (dots)")
    return tuple(notes)


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
                label=shorten(name.removeprefix(prefix), 27),
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
