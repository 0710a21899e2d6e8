"""From a log to all that can be said of it without checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from hnf_offline.detect.highest import highest_rise
from hnf_offline.detect.learning_curve import learning_curve
from hnf_offline.detect.log_events import Written, log_events
from hnf_offline.detect.scaler_history import Scaling, mixed_precision
from hnf_offline.detect.spikes import find_spikes
from hnf_offline.errors import UsageError, spelled
from hnf_offline.findings import LogFindings
from hnf_offline.relate.facts import log_facts
from hnf_offline.run.records import Log, Run


def log_findings(
    run: Run,
    log: Log,
    *,
    rule: str = "robust",
    target: float | None = None,
    scalings: Sequence[tuple[float, float, int]] = (),
) -> LogFindings:
    """Find everything that can be said of a training log.

    Args:
        run: the run the log belongs to.
        log: its log.
        rule: the spike rule.
        target: the loss to reach, None for the level after 90 % of the fall.
        scalings: loss scalers to try on it beside the usual ones: first scale, growth, clean updates before it grows.

    Returns:
        The findings; the same log always gives the same findings.
    """
    spikes = find_spikes(log.rows, rule=rule, resume_steps=run.resume_steps)
    return LogFindings(
        log={
            "path": spelled(run.path),
            "steps": [int(log.rows["step"][0]), int(log.rows["step"][-1])] if log.rows.height else [],
            "disagreeing": log.disagreeing,
            "losses": log.rows.height - log.rows["loss"].null_count(),
            **log_facts(log, run.path if run.path.is_dir() else run.path.parent),
        },
        rule=rule,
        spikes=spikes,
        events=log_events(log.rows, spikes, how_written(log)),
        highest=highest_rise(log.rows, spikes),
        skipped=tuple(
            {"path": spelled(one.path), "reason": spelled(one.reason), "remedy": one.remedy}
            for one in run.skipped
        ),
        curve=learning_curve(log.rows, spikes, target),
        precision=mixed_precision(log.rows, [Scaling(*one) for one in scalings]),
    )


def part_of(log: Log, first: int | None, last: int | None, every: int = 1) -> Log:
    """Take a part of a log, and say so in its notes.

    Repeated rows stay counted over the whole file: which steps they had is not kept.

    Args:
        log: the log.
        first: first step, None for all.
        last: last step, None for all.
        every: of the rows with a loss, every n-th; rows of evaluations alone are kept.

    Returns:
        The log with those rows and the restarts among them; itself where nothing is left out.

    Raises:
        UsageError: if no loss is left.
    """
    rows, said = log.rows, []
    if first is not None or last is not None:
        low, high = (-math.inf if first is None else first), (math.inf if last is None else last)
        rows = rows.filter(pl.col("step").is_between(low, high))
        bounds = (
            f"from step {first}" if first is not None else "",
            f"to step {last}" if last is not None else "",
        )
        said.append(" ".join(bound for bound in bounds if bound))
    if every > 1:
        lossy = pl.col("loss").is_not_null()
        rows = rows.filter(lossy.not_() | ((lossy.cum_sum() - 1) % every == 0))
        said.append(f"one row in {every}")
    if not said:
        return log
    if rows["loss"].null_count() == rows.height:
        known = log.rows["step"].to_list()
        raise UsageError(
            "no row with a loss lies in the steps asked for",
            path=log.files[0] if log.files else None,
            remedy=f"its steps are {known[0]} to {known[-1]}; widen --steps A:B",
        )
    inside = tuple(step for step in log.restarts if rows["step"][0] <= step <= rows["step"][-1])
    return replace(log, rows=rows, restarts=inside, notes=(*log.notes, f"looked at only {', '.join(said)}"))


def how_written(log: Log) -> Written:
    """Say how a log was written, in the words of `detect`.

    Returns:
        Rows, repeated rows, those among them that disagree, and restarts.
    """
    return Written(
        rows=log.rows.height, repeated=log.duplicates, restarts=log.restarts, disagreeing=log.disagreeing
    )
