"""An alarm that could replace the stability alarm: S at the edge and something that grows fast beside it.

It is scored beside the rules of the report and becomes one of them if the test and the fresh seeds bear it out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hnf_offline.detect.growth import fit_growth
from hnf_offline.detect.headroom import headroom_alarms
from hnf_offline.detect.measured import Measured, logged, one
from hnf_offline.detect.rules import STUDIED
from hnf_offline.detect.trailing import exponential_moments
from hnf_offline.findings import Spike

NAME = "imminence alarm"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Thresholds of the alarm, chosen on the tuning seeds of families A, D, F and I.

    Attributes:
        surge: standard deviations by which the logged gradient norm exceeds its running mean.
        decay: weight that the running mean and deviation keep at every logged row.
        warm_up: logged rows before a gradient norm is called unusual.
        surge_from: last S above which a surge counts.
        rush: growth of log S a step, at the learning rate of now, that is no slow climb: doubling in 23 steps.
        rush_from: S above which a rush counts.
        ahead: steps within which a rush reaches 1.
        looks: looks at S that a growth is fitted through; three at least.
        apart: steps between two such looks at least.
        beyond: S that is an alarm however it came about.
        raised_by: factor by which a learning rate is raised at once; Adam's second moment does not follow so soon.
        raised_to: S past which such a raise is an alarm.
        standing: steps for which an alarm stands, so that no other is raised unless a spike came in between.
        refractory: steps from the onset of a spike in which nothing counts.
    """

    surge: float = 3.0
    decay: float = 0.95
    warm_up: int = 25
    surge_from: float = 0.7
    rush: float = 0.03
    rush_from: float = 0.3
    ahead: int = 24
    looks: int = 4
    apart: int = 8
    beyond: float = 2.0
    raised_by: float = 2.0
    raised_to: float = 0.5
    standing: int = 80
    refractory: int = 16


CHOSEN = Thresholds()


def imminent(
    profile: pl.DataFrame, log: pl.DataFrame, spikes: Sequence[Spike], thresholds: Thresholds = CHOSEN
) -> list[tuple[int, str]]:
    """Raise the alarm, from what was known at each step.

    That S reaches 1 says little in a run that lives at the edge: there the loss stands still for a hundred steps and
    more before it spikes. What tells that it goes now is a surge of the gradient norm while S is at the edge; a rush
    of S towards the edge; an S far beyond it; or a learning rate that is raised past what S leaves.

    Args:
        profile: the long table.
        log: the log's rows.
        spikes: only those whose onset is at or before a step count there.
        thresholds: what counts as any of these.

    Returns:
        (step, "headroom", "beyond", "rush" or "surge"), in order.
    """
    series = one(profile, "hessian.stability_ratio")
    if not series.steps.size:
        return []
    onsets = np.sort(np.array([spike.onset for spike in spikes], dtype=np.int64))
    signs = [
        *((step, 0, "headroom") for step in _raised(profile, log, thresholds)),
        *((step, 1, "beyond") for step in series.steps[series.values > thresholds.beyond].tolist()),
        *((step, 2, "rush") for step in _rushes(series, profile, onsets, thresholds)),
        *((step, 3, "surge") for step in _surges(series, log, thresholds)),
    ]
    found: list[tuple[int, str]] = []
    for step, _, name in sorted(signs):
        onset = _last(onsets, step)
        if onset is not None and step - onset < thresholds.refractory:
            continue
        stands = bool(found) and step - found[-1][0] < thresholds.standing
        if not stands or (onset is not None and onset > found[-1][0]):
            found.append((step, name))
    return found


def surge_scores(log: pl.DataFrame, thresholds: Thresholds) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Say by how many standard deviations each logged gradient norm exceeds those before it.

    Returns:
        Steps, and z_t = (g_t - m_t) / s_t with the exponentially weighted mean and deviation of the rows before t;
        NaN in the first rows. Rows that are not finite are left out.

    Source: ZClip (arXiv 2504.02507), whose decay is .97 and whose threshold is 2.5.
    """
    steps, norms = logged(log, "grad_norm")
    finite = np.isfinite(norms)
    steps, norms = steps[finite], norms[finite]
    mean, deviation = exponential_moments(norms, thresholds.decay)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = (norms - mean) / np.maximum(deviation, 1e-12 * np.abs(mean))
    scores[: thresholds.warm_up] = np.nan
    return steps, scores


def _surges(series: Measured, log: pl.DataFrame, thresholds: Thresholds) -> Iterator[int]:
    steps, scores = surge_scores(log, thresholds)
    with np.errstate(invalid="ignore"):
        high = steps[scores > thresholds.surge]
    looks = np.searchsorted(series.steps, high, side="right") - 1
    for step, look in zip(high.tolist(), looks.tolist(), strict=True):
        if look >= 0 and series.values[look] > thresholds.surge_from:
            yield step


def _raised(profile: pl.DataFrame, log: pl.DataFrame, thresholds: Thresholds) -> set[int]:
    sudden = replace(STUDIED, on=thresholds.raised_to, raise_ratio=thresholds.raised_by)
    return {alarm.known_at for rules in (STUDIED, sudden) for alarm in headroom_alarms(profile, log, rules)}


def _rushes(
    series: Measured, profile: pl.DataFrame, onsets: NDArray[np.int64], thresholds: Thresholds
) -> Iterator[int]:
    rates = one(profile, "optimizer.learning_rate")
    rate = dict(zip(rates.steps.tolist(), rates.values.tolist(), strict=True))
    # A raised learning rate raises S at once; what grows is the curvature.
    at_looks = np.array([rate.get(step, np.nan) for step in series.steps.tolist()])
    curvature = series.values / at_looks if (at_looks > 0).all() else series.values
    for row, (step, value) in enumerate(zip(series.steps.tolist(), series.values.tolist(), strict=True)):
        onset = _last(onsets, step)
        begin = -(2**62) if onset is None else onset + thresholds.refractory
        looks = _looks(series, row, begin, thresholds)
        if not value > thresholds.rush_from or len(looks) < 3 or curvature[row] <= curvature[looks[-2]]:
            continue
        fit = fit_growth(series.steps[looks], curvature[looks])
        fast = fit is not None and fit.points >= 3 and fit.slope >= thresholds.rush
        if fit is not None and fast and value * np.exp(fit.slope * thresholds.ahead) > 1:
            yield step


def _looks(series: Measured, row: int, begin: int, thresholds: Thresholds) -> list[int]:
    chosen = [row]
    for other in range(row - 1, -1, -1):
        if series.steps[other] < begin or len(chosen) == thresholds.looks:
            break
        near = series.steps[chosen[-1]] - series.steps[other] < thresholds.apart
        if not near and np.isfinite(series.values[other]):
            chosen.append(other)
    return chosen[::-1]


def _last(onsets: NDArray[np.int64], step: int) -> int | None:
    earlier = int(np.searchsorted(onsets, step, side="right"))
    return int(onsets[earlier - 1]) if earlier else None
