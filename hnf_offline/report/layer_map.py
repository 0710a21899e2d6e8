"""The map of layers over steps: which layer left its own early level, and when. Pooled for display only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hnf_offline.findings import Findings
from hnf_offline.report.chart import Array, Chart
from hnf_offline.report.key_picture import loss_strip, spike_marks, step_range
from hnf_offline.report.series import logged, symbol, usual_gap
from hnf_offline.report.stories import severity
from hnf_offline.report.text import block, common_prefix, number, plural, shorten, times
from hnf_offline.table import of_checkpoints

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
    profile = of_checkpoints(profile)
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
    """Build one map, of checkpoints alone: cells one step wide between them would only be dust.

    Returns:
        The map, None where nothing was measured per layer.
    """
    profile = of_checkpoints(profile)
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
        title=_title(layers, steps, values, shown, baselines, quantities, form, worst_onset(findings)),
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
    """Arrange the long table as layers (forward order) x checkpoints.

    Returns:
        Layers, kinds, steps, values (NaN where absent) and certified; None where there is no row.
    """
    import polars as pl

    rows = of_checkpoints(profile).filter(pl.col("quantity").is_in(quantities))
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
                label=shorten(layer.removeprefix(prefix), 26),
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


def worst_onset(findings: Findings) -> int | None:
    """Find the onset that the title of a map looks at: what comes after it is consequence, not cause.

    Returns:
        Onset of the worst spike, None without spikes.
    """
    return max(findings.spikes, key=severity).onset if findings.spikes else None


def _title(
    layers: list[str],
    steps: Array,
    values: Array,
    shown: Array,
    baselines: Array,
    quantities: tuple[str, ...],
    form: str,
    onset: int | None,
) -> str:
    before = np.ones(len(steps), dtype=np.bool_) if onset is None else steps <= onset
    looked_at = np.where(before, np.where(np.isnan(shown), -np.inf, shown), -np.inf)
    if np.isneginf(looked_at).all():
        before[:] = True
        looked_at = np.where(np.isnan(shown), -np.inf, shown)
    row, column = (int(place) for place in np.unravel_index(int(looked_at.argmax()), shown.shape))
    top = float(looked_at[row, column])
    name = symbol(quantities[0])
    if math.isinf(top):
        return f"{name} per layer: " + (
            "infinite in " + shorten(layers[row], 60) if top > 0 else "no finite value"
        )
    until = "" if before.all() else f"up to the onset at {onset:,}: "
    where = f"{shorten(layers[row], 60)} at step {int(steps[column]):,}"
    if form == "bands":
        return f"Component estimates of the source documents, {until}highest 1e{number(top, 2)} in {where}"
    if form == "difference":
        early, then = number(float(baselines[row]), 2), number(float(values[row, column]), 2)
        return f"Mass of the top eigenvector per layer, {until}moved most into {where}, {early} to {then}"
    return f"{name} per layer, {until}rose most in {where}, {times(top)} its early level"


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
