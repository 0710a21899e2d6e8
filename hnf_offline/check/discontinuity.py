"""Checkpoints that do not descend from the one before: out of order, off the way, or after a jump.

Distances decide, not their size against a fixed bound: a run is compared with itself. Spikes and jumps of the
learning rate make long legs, but the run goes on from where they led; a checkpoint of another step or another run
does not.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hnf_offline.check.duplicates import constant, find_duplicates, moving, vectors
from hnf_offline.check.registry import Check, Outcome
from hnf_offline.check.series import Portrait, Series, counted, some
from hnf_offline.check.shapes import layouts, usual
from hnf_offline.check.trajectory import distances, exchanges, legs, off_places, two_ways
from hnf_offline.findings import Fault

if TYPE_CHECKING:
    from hnf_offline.check.trajectory import Matrix

#: A checkpoint of another run lies at least so many usual legs from all others.
_FAR = 2.0
#: A jump: a leg so many times faster (for its steps and learning rates) than its neighbours, ...
_JUMP = 6.0
#: ... whose ends have less in common than this (cosine of the matrices).
_STRANGERS = 0.5
#: A single tensor is noisier than all together.
_TENSOR_OFF = 3.0
_LEAST_SAMPLE = 64
_LEAST_SHARE = 0.005


def look(series: Series) -> Outcome:
    """Look for exchanged checkpoints, for checkpoints off the way of the others, and for jumps.

    Returns:
        A danger for each, a warning where only some tensors are off.
    """
    portraits, left_out = _comparable(series)
    if len(portraits) < 3:
        return Outcome((), "", "fewer than three checkpoints with finite weights of the same shapes")
    points = vectors(portraits)
    if points is None:
        return Outcome((), "", "the checkpoints share no tensor")
    apart = distances(points)
    if not float(legs(apart).max()):
        return Outcome((), "", "the weights never change")
    covered: dict[Fault, tuple[int, ...]] = {}
    faults, kept = _strangers(series, portraits, apart, covered)
    order = list(kept)
    if len(order) >= 3:
        swapped, order = _exchanged(series, portraits, apart, order, covered)
        faults += swapped
        faults += _off(series, portraits, apart, order)
        faults += _jumps(series, portraits, apart, order)
    claimed = {step for fault in faults for step in covered.get(fault, (fault.step,))}
    faults += _parts(series, [portraits[place] for place in order], claimed)
    return Outcome(tuple(faults), f"the way through {some(len(portraits), 'checkpoint')}", left_out, covered)


def _comparable(series: Series) -> tuple[list[Portrait], str]:
    expected = usual(layouts(series)[0])
    copies = {step for group in find_duplicates(series) for step in group.wrong}
    fit, unfit = [], 0
    for portrait in series.portraits or ():
        if portrait.step in copies:
            continue
        alike = all(
            name in portrait.tensors and portrait.tensors[name].shape == shape
            for name, (shape, _) in expected.items()
        )
        if alike and not any(tensor.nonfinite for tensor in portrait.tensors.values()):
            fit.append(portrait)
        else:
            unfit += 1
    return (
        fit,
        f"{some(unfit, 'checkpoint')} with other shapes or weights that are not finite" if unfit else "",
    )


def _strangers(
    series: Series,
    portraits: Sequence[Portrait],
    apart: Matrix,
    covered: dict[Fault, tuple[int, ...]],
) -> tuple[list[Fault], list[int]]:
    # Two ways in one folder: the smaller one is of another run. The places of the other one are kept.
    every = list(range(len(portraits)))
    labels = two_ways(apart)
    if labels is None:
        return [], every
    minor = 1 if 2 * sum(labels) <= len(labels) else 0
    kept = [place for place in every if labels[place] != minor]
    strange = [place for place in every if labels[place] == minor]
    if len(kept) < 2:
        return [], every
    usual_leg = sorted(float(apart[a, b]) for a, b in itertools.pairwise(kept))[(len(kept) - 1) // 2]
    nearest = min(float(apart[a, b]) for a in strange for b in kept)
    if nearest < _FAR * usual_leg:
        return [], every
    steps = [portraits[place].step for place in strange]
    evidence = (
        f"the weights of {counted(steps)} lie {nearest / usual_leg:.0f} times as far from all others as checkpoints "
        "that follow each other do, and the run goes on as if they were not there"
    )
    if len(strange) == 1:
        return [_fault(series, steps[0], evidence)], kept
    two = f"two runs: {evidence}"
    where = series.path_of(steps[0])
    fault = Fault("mixed-runs", "danger", steps[0], where, two, _MIXED_REMEDY)
    covered[fault] = tuple(steps)
    return [fault], kept


def _exchanged(
    series: Series,
    portraits: Sequence[Portrait],
    apart: Matrix,
    order: list[int],
    covered: dict[Fault, tuple[int, ...]],
) -> tuple[list[Fault], list[int]]:
    import numpy as np

    faults = []
    order = list(order)
    for one in exchanges(apart[np.ix_(order, order)]):
        first, second = portraits[order[one.first]].step, portraits[order[one.second]].step
        order[one.first], order[one.second] = order[one.second], order[one.first]
        evidence = (
            f"steps {min(first, second)} and {max(first, second)} lie better on the way of the run the other way "
            f"round: that shortens the legs to {one.share:.0%}"
        )
        fault = _fault(series, min(first, second), evidence)
        covered[fault] = (first, second)
        faults.append(fault)
    return faults, order


def _off(series: Series, portraits: Sequence[Portrait], apart: Matrix, order: Sequence[int]) -> list[Fault]:
    import numpy as np

    faults = []
    for place, off in off_places(apart[np.ix_(order, order)]).items():
        before, step, after = (portraits[order[k]].step for k in (place - 1, place, place + 1))
        evidence = (
            f"the way from step {before} to {after} over it is {off:.1f} times as long as without it "
            "(1 straight on, 1.4 at random)"
        )
        faults.append(_fault(series, step, evidence))
    return faults


def _jumps(series: Series, portraits: Sequence[Portrait], apart: Matrix, order: Sequence[int]) -> list[Fault]:
    # A leg much faster than those around it that leads to weights with nothing in common with those before.
    speeds = []
    for a, b in itertools.pairwise(order):
        speeds.append(float(apart[a, b]) / _rates(series, portraits[a].step, portraits[b].step))
    faults = []
    for place, speed in enumerate(speeds):
        around = speeds[max(0, place - 3) : place] + speeds[place + 1 : place + 4]
        if not around or speed < _JUMP * max(around):
            continue
        before, after = portraits[order[place]], portraits[order[place + 1]]
        alike = _cosine(before, after)
        if alike is None or alike >= _STRANGERS:
            continue
        evidence = (
            f"the weights changed {speed / max(around):.0f} times as fast as anywhere around, for the steps and "
            f"learning rates between them; their cosine with step {before.step} is {alike:.2f}"
        )
        faults.append(_fault(series, after.step, evidence))
    return faults


def _parts(series: Series, portraits: Sequence[Portrait], claimed: set[int | None]) -> list[Fault]:
    # The same for every tensor on its own: a single shard may be of another step or run.
    if len(portraits) < 3:
        return []
    still = constant(portraits)
    total = sum(portraits[0].tensors[name].size for name in moving(portraits[0], still))
    off: dict[int, list[str]] = {}
    for name, tensor in portraits[0].tensors.items():
        if name in still or not tensor.floating or len(tensor.sample) < _LEAST_SAMPLE:
            continue
        points = vectors(portraits, [name])
        if points is None:
            continue
        for place in off_places(distances(points), _TENSOR_OFF):
            step = portraits[place].step
            if step not in claimed:
                off.setdefault(step, []).append(name)
    faults = []
    for step, names in off.items():
        share = sum(portraits[0].tensors[name].size for name in names) / max(1, total)
        if share >= _LEAST_SHARE:
            evidence = (
                f"{len(names)} tensors ({share:.0%} of the parameters), such as {names[0]}, leave the way of the run "
                "at this step alone; the others do not"
            )
            where = series.path_of(step)
            faults.append(Fault(CHECK.name, "warning", step, where, evidence, _PART_REMEDY))
    return faults


def _rates(series: Series, first: int, last: int) -> float:
    # Sum of the learning rates between two steps where the log says them, else their number.
    log = series.run.log
    if log is None:
        return float(max(1, last - first))
    import polars as pl

    usable = pl.col("learning_rate").is_not_null() & pl.col("learning_rate").is_finite()
    known = log.rows.filter(usable)
    if known.height < 0.5 * log.rows.height or not known.height:
        return float(max(1, last - first))
    between = known.filter((pl.col("step") > first) & (pl.col("step") <= last))["learning_rate"]
    typical = float(known["learning_rate"].max() or 0.0)  # type: ignore[arg-type]
    if typical <= 0:
        return float(max(1, last - first))
    mean = float(between.mean() or 0.0) if between.len() else typical  # type: ignore[arg-type]
    # A rate of almost nothing explains no leg, but does not make a rounding error a jump either.
    return max(mean / typical, 1e-2) * max(1, last - first)


def _cosine(before: Portrait, after: Portrait) -> float | None:
    import numpy as np

    matrices = [name for name, tensor in before.tensors.items() if tensor.floating and len(tensor.shape) >= 2]
    points = vectors([before, after], matrices)
    if points is None:
        return None
    norms = np.linalg.norm(points, axis=1)
    return float(points[0] @ points[1] / max(norms[0] * norms[1], 1e-300))


def _fault(series: Series, step: int, evidence: str) -> Fault:
    return Fault("discontinuity", "danger", step, series.path_of(step), evidence, CHECK.remedy)


_PART_REMEDY = "a shard or a part of the file is of another step or run: copy this checkpoint again"
_MIXED_REMEDY = "keep the two in folders of their own, or name one with [checkpoints] glob in run.toml"

CHECK = Check(
    name="discontinuity",
    cost="weights",
    looks_for="weights that do not descend from those of the step before",
    matters="Curvature, update ratios and leads across such a place compare weights that have nothing to do with "
    "each other.",
    remedy="look where it was copied from: it is of another step or another run, or training went back there",
    look=look,
)
