"""Pool the runs' scores: recall, precision, leads and areas, each with chance and an interval over runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.study.analysis import Analysed
from hnf_offline.relate.events import announces, clusters, score
from hnf_offline.relate.series import AFTERSHOCK

#: Fixed before any run of the study was made: longest leads that count, and horizons of the areas, in steps.
WINDOWS = (40, 80, 160)
HORIZONS = (16, 40, 80)
#: The window of every table that has but one.
WINDOW = 80
#: Shortest lead that leaves time to act (the condition-number profiler's criterion).
EARLY = 10
COUNTED = (
    "spikes",
    "alarms",
    "announced",
    "early",
    "correct",
    "false",
    "steps",
    "chance_announced",
    "chance_correct",
    "warned",
)
#: Draws of the runs for an interval; an area takes longer than a share.
DRAWS, AREA_DRAWS = 1000, 200
COVERAGE = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % interval over runs.

    Attributes:
        value: the figure, None where there is nothing to divide by.
        low: lower end, None where fewer than three runs carry it.
        high: upper end.
    """

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Pooled:
    """One rule on some runs.

    Attributes:
        rule: its name.
        window: longest lead that counts.
        baseline: whether it is a rival of curvature.
        runs: runs that have data for it.
        spikes: clusters of spikes scored.
        alarms: episodes scored.
        recall: share of clusters announced.
        early_recall: the same by episodes at least ten steps before.
        precision: share of episodes that announce.
        chance_recall: as many episodes a run, placed at random.
        chance_precision: the same.
        leads: all leads, in steps.
        resolution: grid on which the rule speaks.
        false_alarms_per_1000: per 1000 scored steps, healthy runs included.
        time_in_warning: share of scored steps within a window after an episode.
    """

    rule: str
    window: int
    baseline: bool
    runs: int
    spikes: int
    alarms: int
    recall: Interval
    early_recall: Interval
    precision: Interval
    chance_recall: float | None
    chance_precision: float | None
    leads: tuple[int, ...]
    resolution: int
    false_alarms_per_1000: Interval
    time_in_warning: float


@dataclass(frozen=True, slots=True)
class Area:
    """How well a score ranks the checkpoints before a spike above the others.

    Attributes:
        score: its name.
        horizon: steps within which the spike starts.
        runs: runs that have the score.
        checkpoints: how many are ranked.
        base_rate: share of them before a spike: what the precision-recall area is by chance.
        auroc: area under the ROC curve; .5 by chance.
        auprc: average precision.
    """

    score: str
    horizon: int
    runs: int
    checkpoints: int
    base_rate: float
    auroc: Interval
    auprc: Interval


def pooled(runs: Sequence[Analysed], rule: str, window: int) -> Pooled | None:
    """Score one rule over some runs.

    Counts are added up over runs before anything is divided, so that a run without spikes counts with its false
    alarms. Chance is that of each run at its own number of episodes. Several readings of a run, as with checkpoints
    left out, are one run where runs are drawn for an interval.

    Returns:
        The pooled scores, None where no run has data for the rule.
    """
    having = [run for run in runs if rule in run.alarms]
    if not having:
        return None
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    leads: list[int] = []
    for run in having:
        found, early = (
            score(
                run.alarms[rule],
                run.onsets,
                window=window,
                minimum_lead=minimum,
                resolution=run.resolution[rule],
                first=run.first,
                last=run.last,
                at=run.at[rule] or None,
            )
            for minimum in (1, EARLY)
        )
        leads.extend(found.leads)
        correct = round((found.precision or 0.0) * found.n_alarms)
        counts[run.case.name].update({
            "spikes": found.n_spikes,
            "alarms": found.n_alarms,
            "announced": len(found.leads),
            "early": len(early.leads),
            "correct": correct,
            "false": found.n_alarms - correct,
            "steps": run.steps,
            "chance_announced": (found.chance_recall or 0.0) * found.n_spikes,
            "chance_correct": (found.chance_precision or 0.0) * found.n_alarms,
            "warned": found.time_in_warning * run.steps,
        })
    table = {name: np.array([one[name] for one in counts.values()], float) for name in COUNTED}
    totals = {name: float(values.sum()) for name, values in table.items()}
    rate = bootstrapped(table["false"], table["steps"])
    return Pooled(
        rule=rule,
        window=window,
        baseline=having[0].baseline[rule],
        runs=len(counts),
        spikes=int(totals["spikes"]),
        alarms=int(totals["alarms"]),
        recall=bootstrapped(table["announced"], table["spikes"]),
        early_recall=bootstrapped(table["early"], table["spikes"]),
        precision=bootstrapped(table["correct"], table["alarms"]),
        chance_recall=_share(totals["chance_announced"], totals["spikes"]),
        chance_precision=_share(totals["chance_correct"], totals["alarms"]),
        leads=tuple(sorted(leads)),
        resolution=max(run.resolution[rule] for run in having),
        false_alarms_per_1000=Interval(*(None if one is None else 1000 * one for one in _ends(rate))),
        time_in_warning=totals["warned"] / totals["steps"],
    )


def bootstrapped(above: NDArray[Any], below: NDArray[Any]) -> Interval:
    """Divide two sums over runs, and draw the runs anew for the interval.

    Returns:
        The share; without an interval where fewer than three runs have a denominator.
    """
    value = _share(float(above.sum()), float(below.sum()))
    if value is None or int((below > 0).sum()) < 3:
        return Interval(value)
    drawn = np.random.default_rng(0).integers(len(above), size=(DRAWS, len(above)))
    denominators = below[drawn].sum(axis=1)
    shares = above[drawn].sum(axis=1)[denominators > 0] / denominators[denominators > 0]
    low, high = np.quantile(shares, COVERAGE)
    return Interval(value, float(low), float(high))


def area(runs: Sequence[Analysed], name: str, horizon: int) -> Area | None:
    """Rank the checkpoints of some runs by one score.

    Checkpoints in an aftershock are left out, and those in the last `horizon` steps of a run that no spike follows.

    Returns:
        The areas, None where checkpoints of both kinds are missing.
    """
    values, positive, owner = _ranked(runs, name, horizon)
    if not positive.size or positive.all() or not positive.any():
        return None

    auroc, auprc = with_intervals(lambda rows: areas_under(positive[rows], values[rows]), positive, owner)
    members = int(np.unique(owner).size)
    return Area(name, horizon, members, int(values.size), float(positive.mean()), auroc, auprc)


def areas_under(positive: NDArray[np.bool_], values: NDArray[np.float64]) -> tuple[float, float]:
    """Give the areas under the ROC and the precision-recall curve, as scikit-learn's, in a hundredth of its time.

    Args:
        positive: [n], of both kinds.
        values: [n], finite; equal ones are ranked together.

    Returns:
        The area by trapezoids, and the average precision.
    """
    order = np.argsort(-values, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))
    hits = np.cumsum(positive[order])[ends].astype(float)
    alarms = ends + 1.0
    recall, false = hits / hits[-1], (alarms - hits) / (alarms[-1] - hits[-1])
    auroc = np.trapezoid(np.append(0.0, recall), np.append(0.0, false))
    return float(auroc), float(np.sum(np.diff(recall, prepend=0.0) * hits / alarms))


def judged(run: Analysed, horizon: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Say which checkpoints of a run are ranked, and which of them a spike follows within the horizon.

    Returns:
        Two flags a checkpoint.
    """
    steps = run.scores["step"].to_numpy()
    starts = clusters(run.onsets, -(2**62), run.last)
    number, aftershock = announces(steps, starts, horizon, 1, AFTERSHOCK)
    soon = number >= 0
    return ~aftershock & (steps <= run.last) & (soon | (steps <= run.last - horizon)), soon


def _ranked(
    runs: Sequence[Analysed], name: str, horizon: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    values, positive, owner = [], [], []
    for which, run in enumerate(runs):
        if name not in run.scores.columns:
            continue
        keep, soon = judged(run, horizon)
        keep = keep & run.scores[name].is_not_null().to_numpy()
        values.append(np.nan_to_num(run.scores[name].to_numpy()[keep], nan=0.0))
        positive.append(soon[keep])
        owner.append(np.full(int(keep.sum()), which))
    if not values:
        return np.empty(0), np.empty(0, bool), np.empty(0, np.int64)
    return np.concatenate(values), np.concatenate(positive), np.concatenate(owner)


def with_intervals(
    figures: Callable[[NDArray[Any]], tuple[float, ...]],
    positive: NDArray[np.bool_],
    owner: NDArray[np.int64],
) -> tuple[Interval, ...]:
    """Take figures of all rows, and of rows whose runs are drawn anew for their intervals.

    Args:
        figures: takes row numbers, of both kinds.
        positive: the kind of each row.
        owner: the run of each row.

    Returns:
        One interval a figure; without ends where there are fewer than three runs.
    """
    whole = figures(np.arange(owner.size))
    members = np.unique(owner)
    if members.size < 3:
        return tuple(Interval(one) for one in whole)
    rows_of = {member: np.flatnonzero(owner == member) for member in members.tolist()}
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(AREA_DRAWS):
        rows = np.concatenate([rows_of[one] for one in generator.choice(members, members.size).tolist()])
        if positive[rows].any() and not positive[rows].all():
            drawn.append(figures(rows))
    lows, highs = np.quantile(np.array(drawn), COVERAGE, axis=0).tolist()
    return tuple(Interval(*one) for one in zip(whole, lows, highs, strict=True))


def _share(above: float, below: float) -> float | None:
    return above / below if below else None


def _ends(one: Interval) -> tuple[float | None, float | None, float | None]:
    return one.value, one.low, one.high
