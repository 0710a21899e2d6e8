"""Where the unstable direction lives: which layer's share of it moved away from the run's own baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hnf_offline.findings import Spike
from hnf_offline.quantities.hessian import unstable_mass_change
from hnf_offline.relate.series import AFTERSHOCK, Steps, Values, spacing
from hnf_offline.table import of_checkpoints, one_source

if TYPE_CHECKING:
    import polars as pl

Flags = NDArray[np.bool_]

MASS = "hessian.unstable_mass"
MASS_CHANGE = "hessian.unstable_mass_change"
RATIO = "hessian.stability_ratio"

#: Earlier checkpoints a baseline needs.
MINIMUM_BASELINE = 3

#: A layer stands out at this many robust standard deviations over all layers and earlier checkpoints ...
STANDS_OUT = 6.0
#: ... and when its share of the unstable direction grew by at least this much of the whole.
SMALLEST_MASS_CHANGE = 0.1
#: ... or its S grew, against its own baseline, this many times more than the median layer's did.
SMALLEST_RATIO_CHANGE = 1.5


@dataclass(frozen=True, slots=True)
class Moved:
    """The layer that moved first.

    Attributes:
        layer: its path.
        quantity: what moved: "hessian.unstable_mass_change" or "hessian.stability_ratio".
        step: the checkpoint, or the zoomed step, at which it first stood out.
        evidence: one sentence with the numbers.
    """

    layer: str
    quantity: str
    step: int
    evidence: str


@dataclass(frozen=True, slots=True)
class _Changes:
    """Change against the baseline, checkpoints x layers; NaN where there is no baseline yet."""

    layers: tuple[str, ...]
    steps: Steps
    values: Values
    baseline: Values
    change: Values
    zoomed: Flags


def _matrix(profile: pl.DataFrame, quantity: str) -> tuple[tuple[str, ...], Steps, Values, Flags]:
    import polars as pl

    rows = one_source(profile.filter((pl.col("quantity") == quantity) & (pl.col("layer") != "")))
    if not rows.height:
        return (), np.empty(0, np.int64), np.empty((0, 0)), np.empty(0, np.bool_)
    layers = tuple(
        rows.group_by("layer").agg(pl.col("depth").min()).sort(["depth", "layer"])["layer"].to_list()
    )
    wide = rows.pivot(on="layer", index="step", values="value", aggregate_function="median").sort("step")
    steps = wide["step"].to_numpy().astype(np.int64)
    zoomed = ~np.isin(steps, of_checkpoints(rows)["step"].to_numpy())
    return layers, steps, wide.select(layers).to_numpy().astype(np.float64), zoomed


def _outside(steps: Steps, spikes: Sequence[Spike]) -> Flags:
    quiet = np.ones(steps.shape, bool)
    for spike in spikes:
        end = max(spike.onset + AFTERSHOCK, spike.end or spike.onset)
        quiet &= ~((steps >= spike.onset) & (steps <= end))
    return quiet


def _baselines(steps: Steps, values: Values, zoomed: Flags, spikes: Sequence[Spike]) -> Values:
    """Median of the earlier checkpoints outside spikes, layer by layer.

    Zoomed steps enter no baseline: they lie just before spikes, and there are many of them.

    Returns:
        Same shape as the values, NaN where fewer than `MINIMUM_BASELINE` are known.
    """
    quiet = _outside(steps, spikes) & ~zoomed
    result = np.full(values.shape, np.nan)
    for k in range(1, steps.size):
        past = values[:k][quiet[:k]]
        enough = np.isfinite(past).sum(axis=0) >= MINIMUM_BASELINE if past.size else np.zeros(0, bool)
        if enough.any():
            masked = np.where(np.isfinite(past), past, np.nan)[:, enough]
            result[k, enough] = np.nanmedian(masked, axis=0)
    return result


def _mass(profile: pl.DataFrame, spikes: Sequence[Spike]) -> _Changes:
    layers, steps, values, zoomed = _matrix(profile, MASS)
    baseline = _baselines(steps, values, zoomed, spikes)
    return _Changes(layers, steps, values, baseline, unstable_mass_change(values, baseline), zoomed)


def _ratio(profile: pl.DataFrame, spikes: Sequence[Spike]) -> _Changes:
    layers, steps, values, zoomed = _matrix(profile, RATIO)
    baseline = _baselines(steps, values, zoomed, spikes)
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.log(values / baseline)
    change = np.where(np.isfinite(change), change, np.nan)
    if change.size:
        # a learning-rate jump multiplies every layer's S alike: what all do names none
        rows = np.isfinite(change).any(axis=1)
        change[rows] -= np.nanmedian(change[rows], axis=1, keepdims=True)
    return _Changes(layers, steps, values, baseline, change, zoomed)


def first_layer(
    profile: pl.DataFrame, spike: Spike, spikes: Sequence[Spike] = (), window: int = 80
) -> Moved | None:
    """Name the layer that stood out first before a spike, if one did.

    The share of the unstable direction is asked first, then the layer's S against its baseline relative to
    the median layer. A layer stands out when its change is large, large in robust standard deviations over
    all layers and earlier checkpoints, and confirmed by the next checkpoint where one lies before the onset;
    where that stretch was zoomed, by at least half of the steps within a checkpoint gap.

    Args:
        profile: the long table.
        spike: the spike.
        spikes: all spikes, whose checkpoints enter no baseline.
        window: steps before the onset that are looked at.

    Returns:
        The layer, or None where none stands out.
    """
    among = tuple(spikes) or (spike,)
    for quantity, changes, smallest in (
        (MASS_CHANGE, _mass(profile, among), SMALLEST_MASS_CHANGE),
        (RATIO, _ratio(profile, among), float(np.log(SMALLEST_RATIO_CHANGE))),
    ):
        if len(changes.layers) < 2:
            continue
        found = _stands_out(changes, spike, among, smallest, window)
        if found is None:
            continue
        k, j, z = found
        step, layer = int(changes.steps[k]), changes.layers[j]
        if quantity == MASS_CHANGE:
            evidence = (
                f"the unstable direction lives in {layer}: its share of it is "
                f"{changes.values[k, j]:.2f} against {changes.baseline[k, j]:.2f} before (z {z:.0f})"
            )
        else:
            evidence = (
                f"S of {layer} is {changes.values[k, j]:.2g}, "
                f"{changes.values[k, j] / changes.baseline[k, j]:.1f} times its baseline, "
                f"{np.exp(changes.change[k, j]):.1f} times more than the median layer (z {z:.0f})"
            )
        return Moved(layer, quantity, step, evidence)
    return None


def _stands_out(
    changes: _Changes, spike: Spike, spikes: Sequence[Spike], smallest: float, window: int
) -> tuple[int, int, float] | None:
    quiet = _outside(changes.steps, spikes)
    before = [
        k
        for k, step in enumerate(changes.steps)
        if spike.onset - window <= step < spike.onset and quiet[k] and np.isfinite(changes.change[k]).any()
    ]
    standing: dict[int, tuple[int, float]] = {}
    for k in before:
        past = changes.change[:k][(quiet & ~changes.zoomed)[:k]]
        past = past[np.isfinite(past)]
        j = int(np.nanargmax(changes.change[k]))
        others = np.delete(changes.change[k], j)
        pool = np.concatenate([past, others[np.isfinite(others)]])
        scale = 1.4826 * float(np.median(np.abs(pool - np.median(pool)))) if pool.size else 0.0
        z = float(changes.change[k, j]) / max(scale, smallest / STANDS_OUT)
        if changes.change[k, j] >= smallest and z >= STANDS_OUT:
            standing[k] = (j, z)
    gap = spacing(changes.steps[~changes.zoomed])
    for place, k in enumerate(before):
        if k not in standing:
            continue
        following = before[place + 1 : place + 2]
        if following and changes.zoomed[following[0]]:
            following = [one for one in before[place + 1 :] if changes.steps[one] - changes.steps[k] <= gap]
        agreeing = sum(standing.get(one, (-1, 0.0))[0] == standing[k][0] for one in following)
        if 2 * agreeing >= len(following):
            return k, *standing[k]
    return None
