"""What curvature adds to all else that is known: a logistic regression with it and without, on unseen families."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.study.analysis import CURVATURE, Analysed
from benchmarks.study.dear import DEAR
from benchmarks.study.scoring import Interval, areas_under, judged, with_intervals


@dataclass(frozen=True, slots=True)
class Added:
    """One family that the regression has not seen.

    Attributes:
        family: its letter.
        checkpoints: how many were ranked.
        without: AUROC of everything but curvature.
        with_curvature: AUROC of everything.
        difference: of the two; its interval is over runs, both regressions being ranked on the same runs.
    """

    family: str
    checkpoints: int
    without: Interval
    with_curvature: Interval
    difference: Interval


def added_by_curvature(by_family: Mapping[str, Sequence[Analysed]], horizon: int) -> list[Added]:
    """Leave out one family at a time, fit on the others, rank the one left out.

    All scores are causal. They pass through asinh, which tames those that span decades and keeps signs; what a run
    lacks is the median of the others. Checkpoints before a spike weigh as much as all others together.

    Args:
        by_family: runs of each family.
        horizon: a checkpoint counts as before a spike where one starts within so many steps.

    Returns:
        One entry a family that has checkpoints of both kinds; empty below two families.
    """
    names = sorted({
        name
        for runs in by_family.values()
        for run in runs
        for name in run.scores.columns
        # A family's length is no property of its state, and the dear scores are known of some runs only.
        if name not in {"step", "step index", *DEAR}
    })
    tables = {letter: _table(runs, names, horizon) for letter, runs in by_family.items()}
    plain = [place for place, name in enumerate(names) if name not in CURVATURE]
    every = list(range(len(names)))
    found = []
    for letter, (values, soon, owner) in tables.items():
        others = [one for other, one in tables.items() if other != letter and one[1].size]
        if not others or not soon.any() or soon.all():
            continue
        known = np.concatenate([one[0] for one in others])
        label = np.concatenate([one[1] for one in others])
        if not label.any() or label.all():
            continue
        without, complete = (_fitted(known[:, chosen], label, values[:, chosen]) for chosen in (plain, every))
        found.append(_compared(letter, without, complete, soon, owner))
    return found


def _table(
    runs: Sequence[Analysed], names: Sequence[str], horizon: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    """Scores of all judged checkpoints [checkpoints, names], whether a spike is near, and the run's number."""
    rows, soon, owner = [], [], []
    for number, run in enumerate(runs):
        keep, near = judged(run, horizon)
        table = np.full((run.scores.height, len(names)), np.nan)
        for place, name in enumerate(names):
            if name in run.scores.columns:
                table[:, place] = run.scores[name].cast(float).fill_null(np.nan).to_numpy()
        table[~np.isfinite(table)] = np.nan
        rows.append(np.arcsinh(table[keep]))
        soon.append(near[keep])
        owner.append(np.full(int(keep.sum()), number))
    return np.concatenate(rows), np.concatenate(soon), np.concatenate(owner)


def _fitted(
    known: NDArray[np.float64], label: NDArray[np.bool_], unseen: NDArray[np.float64]
) -> NDArray[np.float64]:
    model = make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True),
        StandardScaler(),
        LogisticRegression(class_weight="balanced", max_iter=2000),
    )
    return np.asarray(model.fit(known, label).decision_function(unseen))


def _compared(
    letter: str,
    without: NDArray[np.float64],
    complete: NDArray[np.float64],
    soon: NDArray[np.bool_],
    owner: NDArray[np.int64],
) -> Added:
    def areas(rows: NDArray[np.int64]) -> tuple[float, float, float]:
        one, other = (areas_under(soon[rows], score[rows])[0] for score in (without, complete))
        return one, other, other - one

    return Added(letter, int(soon.size), *with_intervals(areas, soon, owner))
