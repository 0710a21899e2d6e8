"""Checkpoints that cannot be read: shards that are missing, saving that was not finished, files cut short."""

from __future__ import annotations

from hnf_offline.check.registry import Check, Outcome
from hnf_offline.check.series import Series, some
from hnf_offline.findings import Fault
from hnf_offline.run.formats.names import step_in_path

_SECOND = "is also of step"
_NO_STEP = "its weights say no step"


def look(series: Series) -> Outcome:
    """Tell what was passed over when the run was opened, and what could not be read afterwards.

    Returns:
        A danger for each checkpoint that is lost.
    """
    run = series.run
    faults = []
    for one in run.skipped:
        step = step_in_path(one.path, run.path)
        if one.checkpoint:
            severity = "danger"
        elif one.reason.startswith(_SECOND):
            severity = "warning"
        elif one.reason.startswith(_NO_STEP):
            continue  # a final model beside the checkpoints is no fault
        else:
            severity, step = "info", None
        faults.append(
            Fault(
                CHECK.name,
                severity,
                step,
                series.relative(one.path),
                one.reason,
                one.remedy or CHECK.remedy,
            )
        )
    for step, (path, reason, remedy) in series.unreadable.items():
        faults.append(
            Fault(CHECK.name, "danger", step, series.relative(path), reason, remedy or CHECK.remedy)
        )
    for portrait in series.portraits or ():
        if portrait.optimizer_error:
            state = portrait.checkpoint.optimizer_files[:1]
            faults.append(
                Fault(
                    CHECK.name,
                    "warning",
                    portrait.step,
                    series.relative(state[0]) if state else series.path_of(portrait.step),
                    f"its optimizer state cannot be read: {portrait.optimizer_error}",
                    "copy it again from where it was written, or remove it",
                )
            )
    total = len(run.checkpoints) + sum(fault.severity == "danger" for fault in faults)
    if not total:
        return Outcome(tuple(faults), "", "the run has no checkpoints")
    read = "headers" if series.portraits is None else "files"
    return Outcome(tuple(faults), f"{read} of {some(total, 'checkpoint')}")


CHECK = Check(
    name="damaged",
    cost="cheap",
    looks_for="checkpoints that cannot be read, lack a shard, or were not saved to the end",
    matters="A checkpoint that is missing lowers the resolution of every lead without a word.",
    remedy="copy it again from where it was written, or remove it",
    look=look,
)
