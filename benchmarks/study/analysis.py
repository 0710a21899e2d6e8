"""What `hnf report` finds in a run, kept as the tables that are scored: through the public pipeline alone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.study import plateau
from benchmarks.study.case import Case
from benchmarks.study.imminence import NAME, imminent
from benchmarks.study.training import trained
from hnf_offline.detect.alarms import all_alarms
from hnf_offline.detect.spikes import find_spikes
from hnf_offline.pipeline import analyse
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.relate.relations import scored_onsets
from hnf_offline.relate.rules import rules, scored_range
from hnf_offline.relate.series import column, last_at_or_before, points
from hnf_offline.run import open_run

SETTINGS = ProfileSettings(tier="stability", device="cpu")
#: Quantities whose largest value, over layers where it is one of layers, speaks for the whole model.
LARGEST = {
    "attention logit": "attention.logit_max",
    "next update over weights": "gradient.next_update_ratio",
    "residual stream": "residual.rms",
    "log Z of the logits": "logits.log_z",
}
#: Gaps between checkpoints that every run is read with as well, in steps.
SPARSE = (16, 32, 64, 128, 256)
#: Scores that need second derivatives or steps along the real update; all others are seen in one backward pass.
CURVATURE = (
    "S",
    "S projected 12 steps",
    plateau.NAME,
    "curvature along the gradient",
    "1 / critical step size",
)


@dataclass(frozen=True, slots=True)
class Analysed:
    """One run, ready to be scored.

    Attributes:
        case: which run.
        first: first step that is scored.
        last: last step that is scored: the onset of a failure for good, where there is one.
        onsets: of its spikes and divergences.
        failed: whether its loss diverged or stopped being finite.
        gap: steps between checkpoints.
        alarms: by rule, the steps at which its episodes start.
        at: by rule, the steps at which it could have spoken; empty where it speaks every `resolution` steps.
        resolution: by rule, the grid on which it speaks.
        baseline: by rule, whether it is a rival of curvature.
        scores: steps and one column a score, at checkpoints; higher is said to be riskier.
        log: steps, loss and gradient norm.
        certified: share of the checkpoints' S that is certified; None where S was not measured.
        sparser: the same run with fewer checkpoints.
        seconds: what training and measuring took now; less where it was kept from before.
    """

    case: Case
    first: int
    last: int
    onsets: tuple[int, ...]
    failed: bool
    gap: int
    alarms: dict[str, list[int]]
    at: dict[str, list[int]]
    resolution: dict[str, int]
    baseline: dict[str, bool]
    scores: pl.DataFrame
    log: pl.DataFrame
    certified: float | None = None
    sparser: tuple[Analysed, ...] = ()
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Steps that are scored."""
        return self.last - self.first + 1


def analysed(case: Case, cache: Path) -> Analysed:
    """Train, profile and read one run; what was trained and profiled before is taken from the cache.

    Returns:
        The run's tables.
    """
    began = time.monotonic()
    folder = trained(case, cache)
    out = cache / "profiles" / case.folder
    out.mkdir(parents=True, exist_ok=True)
    analysis = analyse(open_run(folder), SETTINGS, out, rule="robust")
    assert analysis.log is not None
    return replace(
        read(case, analysis.profile, analysis.log),
        sparser=tuple(_sparser(case, analysis.profile, analysis.log)),
        seconds=time.monotonic() - began,
    )


def read(case: Case, profile: pl.DataFrame, log: pl.DataFrame, every: int = 1, offset: int = 0) -> Analysed:
    """Apply what `hnf report` applies to a profile and a log, as if only every n-th checkpoint had been saved.

    Args:
        case: which run.
        profile: the long table of all checkpoints.
        log: the log's rows.
        every: which checkpoints there are.
        offset: number of the first of them.

    Returns:
        The run's tables; the range that is scored is that of all checkpoints.
    """
    first, last = scored_range(profile, log, case.every)
    saved = profile["step"].unique().sort()
    profile = profile.filter(pl.col("step").is_in(saved[offset::every].implode()))
    spikes = find_spikes(log, rule="robust")
    ratio = profile.filter((pl.col("quantity") == "hessian.stability_ratio") & (pl.col("layer") == ""))
    gap = case.every * every
    failures = [spike.onset for spike in spikes if spike.kind in {"divergence", "nonfinite"}]
    applied = [
        one for one in rules(profile, log, spikes, all_alarms(profile, log, spikes), gap) if one.layer == ""
    ]
    imminence = [step for step, _ in imminent(profile, log, spikes)]
    at = {one.name: one.at.tolist() if one.testable else [] for one in applied}
    resolution = {one.name: one.resolution for one in applied}
    return Analysed(
        case=case,
        first=first,
        last=min([last, *failures]),
        onsets=tuple(scored_onsets(spikes)),
        failed=bool(failures),
        gap=gap,
        alarms={NAME: imminence} | {one.name: one.alarms.tolist() for one in applied},
        at={NAME: list(range(first, last + 1))} | at,
        resolution={NAME: gap} | resolution,  # a surge is known to the step, what S shows to the checkpoint
        baseline={NAME: False} | {one.name: one.baseline for one in applied},
        scores=_scores(profile, log, scored_onsets(spikes), applied),
        certified=None if ratio.is_empty() else float(ratio["certified"].cast(float).mean()),
        log=log.select(name for name in ("step", "loss", "grad_norm") if name in log.columns),
    )


def _sparser(case: Case, profile: pl.DataFrame, log: pl.DataFrame) -> Iterator[Analysed]:
    """The same run with ever fewer checkpoints, from two places each, as far as two are left."""
    saved = profile["step"].n_unique()
    for gap in SPARSE:
        every = gap // case.every
        for offset in (0, every // 2):
            if every > 1 and len(range(offset, saved, every)) >= 2:
                yield read(case, profile, log, every, offset)


def _scores(profile: pl.DataFrame, log: pl.DataFrame, onsets: list[int], applied: list[Any]) -> pl.DataFrame:
    """Every score at every checkpoint, as far as it was known there.

    Returns:
        Columns step, then one a score; null where a score is not known.
    """
    steps, ratio = points(profile, "hessian.stability_ratio")
    columns: dict[str, list[float | None]] = {"S": _spelled(ratio)}

    def at_checkpoints(known_at: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> list[float | None]:
        order = np.argsort(known_at, kind="stable")
        found = (last_at_or_before(known_at[order], values[order], step) for step in steps.tolist())
        return [None if one is None else one[1] for one in found]

    own = {
        "S projected 12 steps": "S projected > 1",
        "RMS_t": "RMS_t > 2.3",
        "curvature along the gradient": "gradient direction > 0.8",
        "gradient norm z": "gradient norm z > 2",
        "loss slope t": "loss slope t > 3",
        "loss spread z": "loss spread z > 3",
    }
    by_name = {one.name: one for one in applied}
    for name, rule in own.items():
        if rule in by_name:
            columns[name] = at_checkpoints(by_name[rule].at, by_name[rule].values)
    critical = points(profile, "update.critical_multiple")
    if critical[0].size:
        columns["1 / critical step size"] = at_checkpoints(critical[0], 1 / critical[1])
    for name, quantity in LARGEST.items():
        rows = profile.filter((pl.col("quantity") == quantity) & pl.col("value").is_finite())
        largest = rows.group_by("step").agg(pl.col("value").max()).sort("step")
        if largest.height:
            columns[name] = at_checkpoints(largest["step"].to_numpy(), largest["value"].to_numpy())
    for name, logged in (("log gradient norm", "grad_norm"), ("log loss", "loss")):
        known_at, values = column(log, logged)
        if known_at.size:
            with np.errstate(divide="ignore", invalid="ignore"):
                columns[name] = at_checkpoints(known_at, np.log(values))
    columns["step index"] = [float(step) for step in steps]
    since = [max((onset for onset in onsets if onset <= step), default=None) for step in steps.tolist()]
    columns["time since the last spike"] = [
        float(step - (steps[0] if onset is None else onset)) for step, onset in zip(steps, since, strict=True)
    ]
    return pl.DataFrame({"step": steps, **columns}, schema_overrides=dict.fromkeys(columns, pl.Float64))


def _spelled(values: np.ndarray[Any, Any]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def trained_only(case: Case, cache: Path) -> str:
    """Train a run and tell how it ended, without profiling it.

    Returns:
        One line.
    """
    log = open_run(trained(case, cache)).log
    assert log is not None
    spikes = [{"onset": spike.onset, "kind": spike.kind} for spike in find_spikes(log.rows)]
    return json.dumps({"run": case.name, "steps": log.rows.height, "spikes": spikes})
