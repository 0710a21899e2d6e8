"""What `hnf check` would look at, from names, sizes and the log; no tensor is read and no model built."""

from __future__ import annotations

from dataclasses import dataclass

from hnf_offline.check.examine import CHEAP_ALONE, chosen
from hnf_offline.check.registry import checks
from hnf_offline.check.replay import WEIGHTS_ALONE, replayable
from hnf_offline.run.records import Run


@dataclass(frozen=True, slots=True)
class PlannedCheck:
    """One check, before it is made.

    Attributes:
        name: the check.
        cost: its cost class, one of `registry.COSTS`.
        looks_for: what it looks for, one clause.
        skipped_because: why it would not be made, "" where it would.
    """

    name: str
    cost: str
    looks_for: str
    skipped_because: str


@dataclass(frozen=True, slots=True)
class CheckPlan:
    """What `hnf check` would look at.

    Attributes:
        checkpoints: how many.
        steps: the first and the last of them, none where there is none.
        read_bytes: size of the weight and optimizer files that would be read, one checkpoint at a time.
        replayed: the checkpoints that would be run on the batch of their next step, and where that is not as logged on
            two more; fewer where model and batches turn out to be large.
        checks: every check.
        missing: what the run lacks, and what that costs.
    """

    checkpoints: int
    steps: tuple[int, ...]
    read_bytes: int
    replayed: tuple[int, ...]
    checks: tuple[PlannedCheck, ...]
    missing: tuple[str, ...]


def plan_check(
    run: Run,
    *,
    cheap: bool = False,
    forward: bool = True,
    first: int | None = None,
    last: int | None = None,
    every: int = 1,
    model: str | None = None,
) -> CheckPlan:
    """Say what would be checked.

    Args:
        run: the run as found on disk.
        cheap: leave out those that read tensors or run the model.
        forward: whether the model is run at all.
        first: first checkpoint step, None for all.
        last: last checkpoint step, None for all.
        every: look at every n-th checkpoint.
        model: `package.module:function` that builds the model, None where the run says.

    Returns:
        The plan.
    """
    run = chosen(run, first, last, every)
    replayed, because = replayable(run, model) if forward else ((), WEIGHTS_ALONE)
    told = tuple(
        PlannedCheck(
            check.name,
            check.cost,
            check.looks_for,
            CHEAP_ALONE if cheap and check.cost != "cheap" else because if check.cost == "replay" else "",
        )
        for check in checks()
    )
    steps = [checkpoint.step for checkpoint in run.checkpoints]
    files = {file for checkpoint in run.checkpoints for file in checkpoint.files if file.is_file()}
    return CheckPlan(
        len(steps),
        (steps[0], steps[-1]) if steps else (),
        0 if cheap else sum(file.stat().st_size for file in files),
        () if cheap else tuple(checkpoint.step for checkpoint in replayed),
        told,
        tuple(f"{item.what}: {item.cost}" for item in run.missing),
    )
