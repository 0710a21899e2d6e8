"""A log that counts from 0, found by replay and moved to where its checkpoints are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hnf_offline.check.replay import agree, log_shift, logged_losses, replay
from hnf_offline.run.counting import recounted
from hnf_offline.run.records import Log, Run


def counted_in_updates(run: Run, model: str | None = None, device: str = "auto") -> Run:
    """Move the log of a run where replays show that it counts otherwise than its checkpoints.

    A few checkpoints are replayed, and only where the log looks as if it counted from 0: its first step is 0, or
    its last one is the step before the last checkpoint.

    Args:
        run: the run as found on disk.
        model: `package.module:function` that builds the model, None where the run says.
        device: where to replay.

    Returns:
        The run, its log in optimizer updates and saying so among its notes; unchanged where nothing shows another
        counting. Where the log begins at step 0 and no replay could tell, a note says that.
    """
    log = run.log
    if log is None or not log.rows.height or not run.checkpoints or log.shift:
        return run
    first, last = int(log.rows["step"][0]), int(log.rows["step"][-1])
    if first > 0 and last != run.checkpoints[-1].step - 1:
        return run
    replays = replay(run, model, device)
    logged = logged_losses(run)
    shift = log_shift(replays.losses, logged)
    if shift is None:
        because = replays.skipped_because or "replayed losses fit neither way of counting"
        unknown = (
            "the log begins at step 0, so it may count otherwise than the checkpoints: its steps can be off by one "
            f"({because})"
        )
        return run if first > 0 else _noted(run, log, unknown)
    if shift == 0:
        return run
    agreeing = sorted({
        step for (step, _), loss in replays.losses.items() if agree(loss, logged.get(step + 1 - shift))
    })
    listed = ", ".join(str(step) for step in agreeing[:4]) + (" ..." if len(agreeing) > 4 else "")
    way = "from 0" if shift == 1 else "one step ahead"
    because = (
        f"the log counts {way}: replayed losses of the checkpoints {listed} are those of its rows "
        f"{', '.join(str(step + 1 - shift) for step in agreeing[:4])}{' ...' if len(agreeing) > 4 else ''}; "
        f"its steps were moved by {shift:+d}"
    )
    return recounted(run, shift, because, batch_shift=_batch_shift(replays.losses, logged, shift))


def _batch_shift(losses: Mapping[tuple[int, int], float], logged: Mapping[int, float], shift: int) -> int:
    # By how much the steps of the batches have to be moved: as the log where the rows agree under the log's own
    # step, not at all where they agree under the update's.
    as_log, as_updates = 0, 0
    for (step, batch), loss in losses.items():
        if agree(loss, logged.get(step + 1 - shift)):
            as_log += batch == step + 1 - shift
            as_updates += batch == step + 1
    return shift if as_log > as_updates else 0


def _noted(run: Run, log: Log, note: str) -> Run:
    return replace(run, log=replace(log, notes=(*log.notes, note)))
