"""Steps counted from 0 made into optimizer updates: the log of a run moved to where its checkpoints are."""

from __future__ import annotations

from dataclasses import replace

from hnf_offline.run.records import Batches, Log, Run


def recounted(run: Run, shift: int, because: str, *, batch_shift: int | None = None) -> Run:
    """Move a run's log by some steps, and with it everything that was counted by the log.

    The loss of row s belongs to the weights after s - 1 updates; a trainer that counts from 0 writes it at s - 1,
    so its log is moved by one.

    Args:
        run: the run as found on disk.
        shift: added to every step of the log.
        because: how that is known, one sentence; told with the log.
        batch_shift: added to the steps of the batches; None where rows are counted from the log's first step.

    Returns:
        The run; the same one where nothing moves.
    """
    if run.log is None or (shift == 0 and not batch_shift):
        return run
    resumes = run.resume_steps
    if resumes == run.log.restarts:  # they were read off the log
        resumes = tuple(step + shift for step in resumes)
    return replace(
        run,
        log=_log(run.log, shift, because),
        batches=None if run.batches is None else _batches(run.batches, shift, batch_shift),
        resume_steps=resumes,
    )


def _log(log: Log, shift: int, because: str) -> Log:
    import polars as pl

    return replace(
        log,
        rows=log.rows.with_columns(pl.col("step") + shift),
        restarts=tuple(step + shift for step in log.restarts),
        segments=tuple(replace(one, first=one.first + shift, last=one.last + shift) for one in log.segments),
        notes=(*log.notes, because),
        shift=log.shift + shift,
    )


def _batches(batches: Batches, shift: int, batch_shift: int | None) -> Batches:
    if batch_shift is None:
        # Rows in order belong to the steps from the log's first on; the log's first step was 0.
        batch_shift = shift if batches.steps is None and batches.first_step == 0 else 0
    if batches.steps is not None:
        return replace(batches, steps=tuple(step + batch_shift for step in batches.steps))
    return replace(batches, first_step=batches.first_step + batch_shift)
