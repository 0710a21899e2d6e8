"""The training log: restarts, steps written twice, gaps, and whether it counts as the checkpoints do."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from hnf_offline.check.registry import Check, Outcome
from hnf_offline.check.series import Series, counted
from hnf_offline.errors import UserError
from hnf_offline.findings import Fault

if TYPE_CHECKING:
    from hnf_offline.run.records import Log

#: Share of a log's range that may be missing before it is more than a remark.
_MOST_MISSING = 0.1
#: Relative difference of two losses of one step that is more than rounding.
_ROUNDING = 1e-4
#: Log files this large are not read a second time.
_LARGEST = 2**28


def look(series: Series) -> Outcome:
    """Look at the log's steps, alone and beside the checkpoints.

    Returns:
        A warning where steps disagree, are missing, or do not reach the checkpoints; remarks on restarts.
    """
    log = series.run.log
    if log is None:
        return Outcome((), "", "the run has no log")
    training = log.rows.filter(log.rows["loss"].is_not_null())
    steps = training["step"].to_list()
    if not steps:
        return Outcome((), "", "the log has no losses")
    faults = [*_restarts(series, log), *_twice(series, log), *_gaps(series, log, steps)]
    faults += _beside_checkpoints(series, log, steps)
    if log.skipped_lines:
        evidence = f"{log.skipped_lines} lines or rows of it could not be read"
        faults.append(_fault(series, log, "info", None, evidence, "the rest was read"))
    return Outcome(tuple(faults), f"{len(steps)} rows of the log")


def _restarts(series: Series, log: Log) -> list[Fault]:
    if not log.restarts:
        return []
    evidence = f"the log starts again or jumps back at {counted(log.restarts)}: the run was resumed there"
    remedy = "nothing; spikes there are told as those of a resume"
    return [_fault(series, log, "info", log.restarts[0], evidence, remedy)]


def _twice(series: Series, log: Log) -> list[Fault]:
    if not log.duplicates:
        return []
    differing = _disagreeing(log)
    said = f"{log.duplicates} rows are of steps that were written again later"
    if differing is None:
        return [_fault(series, log, "info", None, f"{said}; the last writer counts", _TWICE)]
    if not differing:
        return [_fault(series, log, "info", None, f"{said}, with the same losses", _TWICE)]
    first = min(differing)
    earlier, later = differing[first]
    evidence = (
        f"{said}; the losses of {len(differing)} steps disagree, such as step {first}: {earlier:.4g} and "
        f"{later:.4g}; the last writer counts"
    )
    # After a restart the data may come in another order; without one two runs write into one log.
    severity = "info" if log.restarts and _close(differing) else "warning"
    return [_fault(series, log, severity, first, evidence, _TWICE)]


def _disagreeing(log: Log) -> dict[int, tuple[float, float]] | None:
    # Step -> lowest and highest loss of steps that have several; None where the files cannot be read again.
    import polars as pl

    from hnf_offline.run.logs import LOG_FORMATS, format_of

    parts = []
    for file in log.files:
        try:
            if file.is_file() and file.stat().st_size > _LARGEST:
                return None
            known = format_of(file)
            if known is None:
                return None
            frame = LOG_FORMATS[known].read(file).frame
            step, loss = log.columns.get("step", "step"), log.columns.get("loss", "loss")
            parts.append(frame.select(pl.col(step).alias("step"), pl.col(loss).alias("loss")))
        except (UserError, OSError, pl.exceptions.PolarsError):
            return None
    if not parts:
        return None
    losses = pl.concat(parts).drop_nulls().filter(pl.col("loss").is_finite() & pl.col("step").is_finite())
    spread = losses.group_by("step").agg(
        pl.col("loss").first().alias("one"), pl.col("loss").last().alias("other")
    )
    far = (pl.col("one") - pl.col("other")).abs() > _ROUNDING * pl.col("other").abs().clip(1e-12)
    return {
        int(step) + log.shift: (float(one), float(other))
        for step, one, other in spread.filter(far).sort("step").iter_rows()
    }


def _close(differing: dict[int, tuple[float, float]]) -> bool:
    off = sorted(abs(one - other) / max(abs(other), 1e-12) for one, other in differing.values())
    return off[len(off) // 2] <= 0.2


def _gaps(series: Series, log: Log, steps: list[int]) -> list[Fault]:
    if len(steps) < 3:
        return []
    between = [(after - before, before, after) for before, after in itertools.pairwise(steps)]
    usual = _usual_gap(steps)
    wide = [one for one in between if one[0] > 2 * usual]
    if not wide:
        return []
    missing = sum(gap - usual for gap, _, _ in wide)
    share = missing / (steps[-1] - steps[0])
    _, before, after = max(wide)
    evidence = (
        f"{len(wide)} gaps in the log ({share:.1%} of its steps), the widest from step {before} to {after}; rows are "
        f"{usual} steps apart otherwise"
    )
    severity = "warning" if share > _MOST_MISSING else "info"
    remedy = (
        "look for the part of the log that was written elsewhere, and name it with [log] files in run.toml"
    )
    return [_fault(series, log, severity, before, evidence, remedy)]


def _usual_gap(steps: list[int]) -> int:
    gaps = sorted(after - before for before, after in itertools.pairwise(steps))
    return gaps[len(gaps) // 2] if gaps else 1


def _beside_checkpoints(series: Series, log: Log, steps: list[int]) -> list[Fault]:
    saved = [checkpoint.step for checkpoint in series.run.checkpoints]
    if not saved or saved[-1] == 0:
        return []
    usual = _usual_gap(steps)
    last, remedy = saved[-1], "look for the rest of the log, or say how its steps count in run.toml"
    if steps[0] > last:
        evidence = f"the log begins at step {steps[0]}, after the last checkpoint (step {last})"
        return [_fault(series, log, "warning", None, evidence, remedy)]
    if steps[-1] + usual >= last:
        beyond = steps[-1] / last
        if len(saved) > 2 and beyond > 2.5 and steps[-1] - last > 3 * (saved[-1] - saved[-2]):
            evidence = (
                f"the log ends at step {steps[-1]}, the checkpoints at {last}: the rest was not kept, or the log "
                "counts otherwise"
            )
            return [_fault(series, log, "info", None, evidence, remedy)]
        return []
    ratio = last / max(1, steps[-1])
    evidence = f"the log ends at step {steps[-1]}, the checkpoints at {last}"
    if len(saved) > 2 and abs(ratio - round(ratio)) < 0.02 * ratio and ratio > 1.5:
        evidence += f": {round(ratio)} times as far, so it may count something else than the names do"
    return [_fault(series, log, "warning", None, evidence, remedy)]


def _fault(series: Series, log: Log, severity: str, step: int | None, evidence: str, remedy: str) -> Fault:
    where = series.relative(log.files[0]) if len(log.files) == 1 else ""
    return Fault(CHECK.name, severity, step, where, evidence, remedy)


_TWICE = "nothing after a resume; else two runs wrote into one log: name the right file with [log] files"

CHECK = Check(
    name="log",
    cost="cheap",
    looks_for="restarts, steps written twice, gaps, and a log that does not reach the checkpoints",
    matters="Spikes are found in the log: what is missing or doubled there is a spike that is missing or invented.",
    remedy=_TWICE,
    look=look,
)
