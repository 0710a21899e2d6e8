"""Arms: the steps of one retraining as a record, with the spikes that its losses show."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from hnf_offline.detect.spikes import find_spikes
from hnf_offline.findings import Spike
from hnf_offline.profile.settings import ProfileSettings, Progress
from hnf_offline.rerun.policies.registry import entries_of, make_policies
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.series import Series
from hnf_offline.rerun.stability import RATIO, stability_of
from hnf_offline.rerun.start import Start
from hnf_offline.rerun.training import Stability
from hnf_offline.retraining import Arm
from hnf_offline.table import series

AS_WAS = "as was"


@dataclass(frozen=True)
class Telling:
    """How an arm's steps are told to whoever waits.

    Attributes:
        on_progress: called after every measured step, None for nobody.
        before: measured steps of the arms before this one.
        total: measured steps of all arms.
    """

    on_progress: Callable[[Progress], None] | None = None
    before: int = 0
    total: int = 0

    def tell(self, step: int, done: int, seconds: float, event: str = "") -> None:
        """Tell that a step is done."""
        if self.on_progress is not None:
            self.on_progress(Progress(step, self.before + done, self.total, 0, seconds, event, "whatif"))


def as_was(begin: Start, series_of: Series, measured: pl.DataFrame) -> Arm:
    """Make the arm of the run itself from steps that were taken already.

    Returns:
        Its losses, and S where it was measured.
    """
    looks = {
        int(row["step"]): Stability(
            row["value"], math.nan, {}, low=row["low"], high=row["high"], certified=row["certified"]
        )
        for row in series(measured, RATIO).to_dicts()
    }
    return _arm(AS_WAS, begin, series_of, looks, 0.0)


def measured_steps(first: int, stop: int, every: int) -> list[int]:
    """List the steps after which S is measured.

    Returns:
        Every n-th step from the first on, and the last; none where `every` is 0.
    """
    return [
        step for step in range(first, stop + 1) if every and ((step - first) % every == 0 or step == stop)
    ]


def train_arm(
    begin: Start,
    recipe: Recipe,
    stop: int,
    spelling: str,
    settings: ProfileSettings,
    every: int,
    telling: Telling = Telling(),
) -> Arm:
    """Retrain under a policy, or as it was.

    Args:
        begin: where to begin.
        recipe: the reading of the run.
        stop: last step.
        spelling: the policy, or "as was".
        settings: how S is measured.
        every: measure S every n-th step, 0 for never.
        telling: who is told.

    Returns:
        The arm.
    """
    began = time.perf_counter()
    entries = () if spelling == AS_WAS else entries_of(spelling)
    policies = () if spelling == AS_WAS else make_policies(spelling)
    measure = stability_of(begin.session, settings)
    training = begin.training(recipe, policies, measure_stability=measure)
    taken = Series()
    looks: dict[int, Stability] = {}
    try:
        for done, step in enumerate(measured_steps(begin.checkpoint.step, stop, every) or [stop], 1):
            since = time.perf_counter()
            while training.step < step:
                taken.add(training.advance())
            if every:
                known = training.stability()
                if known is not None:
                    looks[step] = known
            telling.tell(step, done, time.perf_counter() - since)
    finally:
        training.end()
    taken.settle()
    return replace(
        _arm(spelling, begin, taken, looks, time.perf_counter() - began),
        notes=tuple(note for policy in policies for note in policy.notes()),
        formula="; ".join(entry.formula for entry in entries),
        cost="; ".join(entry.cost for entry in entries),
        reference="; ".join(entry.reference for entry in entries),
    )


def _arm(spelling: str, begin: Start, taken: Series, looks: Mapping[int, Stability], seconds: float) -> Arm:
    return Arm(
        spelling,
        tuple(taken.steps),
        tuple(taken.losses),
        tuple(taken.grad_norms),
        tuple(taken.learning_rates),
        tuple(looks),
        tuple(look.ratio for look in looks.values()),
        tuple(look.low for look in looks.values()),
        tuple(look.high for look in looks.values()),
        tuple(look.certified for look in looks.values()),
        spikes_of(begin, taken.steps, taken.losses),
        seconds=seconds,
    )


def spikes_of(begin: Start, steps: Sequence[int], losses: Sequence[float | None]) -> tuple[Spike, ...]:
    """Find the loss spikes of a retraining: the log up to its start, then its own losses.

    Returns:
        Spikes whose onset lies in the retraining.
    """
    log = begin.run.log
    first = begin.checkpoint.step
    before: list[tuple[int, float | None]] = []
    if log is not None:
        before = [(step, loss) for step, loss in log.rows.select("step", "loss").rows() if step <= first]
    rows = before + [(step, loss) for step, loss in zip(steps, losses, strict=True) if loss is not None]
    frame = pl.DataFrame(rows, schema={"step": pl.Int64, "loss": pl.Float64}, orient="row")
    found = find_spikes(frame, resume_steps=())
    return tuple(spike for spike in found if spike.onset > first)


def unsettled(arm: Arm) -> tuple[str, ...]:
    """Say where S of an arm is no certified eigenvalue.

    Returns:
        At most one sentence.
    """
    steps = [
        step for step, sure in zip(arm.stability_steps, arm.stability_certified, strict=True) if not sure
    ]
    if not steps:
        return ()
    few = ", ".join(map(str, steps[:4])) + (", ..." if len(steps) > 4 else "")
    return (f"{arm.policy}: S has not settled at {len(steps)} of {len(arm.stability_steps)} looks ({few})",)


def final_loss(arm: Arm) -> float | None:
    """Give the last loss of an arm.

    Returns:
        The loss, None where no step had one.
    """
    return next((loss for loss in reversed(arm.loss) if loss is not None), None)


def peak(arm: Arm) -> tuple[int, float] | None:
    """Give the highest loss of an arm; a loss that is not finite is the highest of all.

    Returns:
        Step and loss, None where no step had one.
    """
    known = [(step, loss) for step, loss in zip(arm.steps, arm.loss, strict=True) if loss is not None]
    return max(known, key=lambda pair: (not math.isfinite(pair[1]), pair[1]), default=None)
