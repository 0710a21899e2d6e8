"""The one entry point: a run and its profile in, all findings out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hnf_offline.detect.alarms import all_alarms
from hnf_offline.detect.cusum import change_points_cusum
from hnf_offline.detect.growth import growth
from hnf_offline.detect.learning_curve import learning_curve
from hnf_offline.detect.pathologies import pathologies
from hnf_offline.detect.pelt import change_points_pelt
from hnf_offline.detect.regimes import regimes
from hnf_offline.detect.scaler_history import mixed_precision
from hnf_offline.detect.spikes import find_spikes
from hnf_offline.findings import ChangePoint, Findings, Growth, ReplayCheck
from hnf_offline.relate.advice import advice
from hnf_offline.relate.evidence import annotated
from hnf_offline.relate.facts import run_facts
from hnf_offline.relate.healthy import last_healthy_checkpoint
from hnf_offline.relate.log_alone import how_written
from hnf_offline.relate.relations import aurocs, relations
from hnf_offline.relate.series import Steps, Values, column, points
from hnf_offline.relate.stories import stories
from hnf_offline.relate.verdict import LEVEL, facts, verdict
from hnf_offline.run.records import Run
from hnf_offline.table import of_checkpoints, schema

if TYPE_CHECKING:
    import polars as pl

#: Replayed and logged loss agree within this, relative to a loss above 1.
REPLAY_TOLERANCE = 1e-3
#: Probability of any change-point in one series without change, for CUSUM and for PELT.
FALSE_ALARM_RATE = 0.05
#: Points a change-point or growth detector needs.
ENOUGH_POINTS = 6
#: A longer series (a log of tens of thousands of rows) is averaged in blocks: detectors cost more than they gain.
LONGEST = 2000
#: Series on which exponential growth towards a threshold is looked for.
GROWTH_THRESHOLDS: Mapping[str, float | None] = {
    "hessian.stability_ratio": 1.0,
    "hessian.lambda_max": None,
    "gradient.norm": None,
    "attention.logit_max": None,
}


def find(
    run: Run,
    profile: pl.DataFrame,
    *,
    rule: str = "robust",
    made: Mapping[str, Any] | None = None,
    zooms: Sequence[Mapping[str, Any]] = (),
) -> Findings:
    """Find everything that can be said about a run.

    What was zoomed sharpens what is told of single spikes: alarms, leads, stories. Whatever is counted over
    the run (relations, regimes, change-points, growth, pathologies) is counted on checkpoints alone, since
    zooming looks more closely just where a spike follows.

    Args:
        run: the run directory as found on disk.
        profile: the long table of its checkpoints and of zoomed stretches; may be empty.
        rule: the spike rule.
        made: versions, time and device, passed through.
        zooms: what was zoomed and how well it gave the run again, passed through.

    Returns:
        The findings; the same run and profile always give the same findings.
    """
    import polars as pl

    profile = profile if profile.width else pl.DataFrame(schema=schema())
    log = None if run.log is None else run.log.rows
    rows = (
        log
        if log is not None
        else pl.DataFrame(
            schema={
                "step": pl.Int64,
                "loss": pl.Float64,
                "grad_norm": pl.Float64,
                "learning_rate": pl.Float64,
            }
        )
    )
    saved = of_checkpoints(profile)
    gap = run.gap if run.gap is not None else _gap(saved)
    spikes = find_spikes(rows, rule=rule, resume_steps=run.resume_steps)
    alarms = annotated(all_alarms(profile, rows, spikes), spikes)
    scored = alarms
    if saved.height < profile.height:
        scored = annotated(all_alarms(saved, rows, spikes), spikes)
    regime = regimes(saved, spikes)
    written = None if run.log is None else how_written(run.log)
    disorders = pathologies(saved, rows, spikes, written)
    related = relations(saved, rows, spikes, scored, gap)
    told = stories(profile, rows, spikes, alarms, gap, regime)
    healthy = last_healthy_checkpoint(
        [checkpoint.step for checkpoint in run.checkpoints], profile, rows, spikes, alarms
    )
    advised = advice(profile, rows, spikes, told, alarms, gap, healthy)
    described = run_facts(run, saved, gap, made or {})
    return Findings(
        run=described,
        verdict=verdict(saved, rows, spikes, told, related, disorders, advised, regime),
        facts=facts(spikes, told, related, healthy, described["checkpoints"], described["checkpoints_found"]),
        spikes=spikes,
        stories=told,
        change_points=_change_points(saved, rows),
        growth=_growth(saved, rows),
        alarms=alarms,
        relations=related,
        regimes=tuple(regime),
        pathologies=disorders,
        replay_checks=replay_checks(saved, rows),
        last_healthy_checkpoint=healthy,
        advice=advised,
        rates={
            "cusum": FALSE_ALARM_RATE,
            "pelt": FALSE_ALARM_RATE,
            "shift_test": LEVEL,
            "auroc": aurocs(saved, rows, spikes, scored, gap),
        },
        zooms=tuple(dict(zoom) for zoom in zooms),
        curve=learning_curve(rows, spikes),
        precision=mixed_precision(rows),
        made=dict(made or {}),
    )


def replay_checks(profile: pl.DataFrame, log: pl.DataFrame) -> tuple[ReplayCheck, ...]:
    """Compare each replayed loss with the logged loss of the step whose rows were replayed.

    Returns:
        One check a checkpoint and batch "step N" that the log has a loss for, in order.
    """
    import polars as pl

    steps, losses = column(log, "loss")
    logged = dict(zip(steps.tolist(), losses.tolist(), strict=True))
    replayed = profile.filter((pl.col("quantity") == "replay.loss") & (pl.col("layer") == "")).sort(
        "step", "batch"
    )
    result = []
    for row in replayed.to_dicts():
        word, _, of = str(row["batch"]).partition(" ")
        if word != "step" or not of.isdigit() or int(of) not in logged:
            continue
        checkpoint, batch_step, value = int(row["step"]), int(of), row["value"]
        value = float("nan") if value is None else float(value)
        truth = logged[batch_step]
        close = abs(value - truth) <= REPLAY_TOLERANCE * max(1.0, abs(truth))
        agrees = bool(close) or (np.isnan(value) and np.isnan(truth))
        result.append(
            ReplayCheck(checkpoint, batch_step, value, truth, batch_step - (checkpoint + 1), bool(agrees))
        )
    return tuple(result)


def _whole_model(
    profile: pl.DataFrame, log: pl.DataFrame
) -> list[tuple[str, np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Series of the whole model that change points are looked for in, and the log's loss.

    Returns:
        Name, steps, values; only finite points, only series long enough, long ones averaged in blocks.
    """
    import polars as pl

    names = sorted(profile.filter(pl.col("layer") == "")["quantity"].unique().to_list())
    series = [(name, *points(profile, name)) for name in names if name != "optimizer.learning_rate"]
    series.append(("loss", *column(log, "loss")))
    result = []
    for name, steps, values in series:
        known = np.isfinite(values)
        if known.sum() >= ENOUGH_POINTS and np.ptp(values[known]) > 0:
            result.append((name, *_in_blocks(steps[known], values[known])))
    return result


def _in_blocks(steps: Steps, values: Values) -> tuple[Steps, Values]:
    """Average a long series in blocks; a block is known at its last step, so what is causal stays so.

    Returns:
        At most `LONGEST` steps and means; an unfinished last block is left out.
    """
    block = -(-steps.size // LONGEST)
    usable = steps.size // block * block
    return steps[block - 1 : usable : block], values[:usable].reshape(-1, block).mean(axis=1)


def _change_points(profile: pl.DataFrame, log: pl.DataFrame) -> tuple[ChangePoint, ...]:
    found: list[ChangePoint] = []
    for name, steps, values in _whole_model(profile, log):
        found += change_points_cusum(steps, values, name, "", false_alarm_rate=FALSE_ALARM_RATE)
        found += change_points_pelt(steps, values, name, "", false_alarm_rate=FALSE_ALARM_RATE)
    return tuple(sorted(found, key=lambda point: (point.step, point.quantity, point.method)))


def _growth(profile: pl.DataFrame, log: pl.DataFrame) -> tuple[Growth, ...]:
    found: list[Growth] = []
    for name, steps, values in _whole_model(profile, log):
        if name in GROWTH_THRESHOLDS and (values > 0).all():
            found += growth(steps, values, name, "", GROWTH_THRESHOLDS[name])
    return tuple(sorted(found, key=lambda stretch: (stretch.start, stretch.quantity)))


def _gap(profile: pl.DataFrame) -> int | None:
    steps = np.unique(profile["step"].to_numpy())
    return int(np.median(np.diff(steps))) if steps.size > 1 else None
