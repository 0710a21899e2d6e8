"""What is known around one spike: S before and after it, the alarms that came before, the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hnf_offline.findings import Alarm, Spike
from hnf_offline.relate.rules import STABILITY_RULES
from hnf_offline.relate.series import (
    column,
    first_after,
    last_at_or_before,
    points,
    spacing,
    spacing_at,
    zoomed_steps,
)
from hnf_offline.table import of_checkpoints, one_source, series

if TYPE_CHECKING:
    import polars as pl

#: A learning-rate change this many steps before the onset can be its cause (jumps spike within 2-7 steps).
JUMP_STEPS = 8
#: The learning rate has jumped when it is this many times its median over the rows before.
JUMP_RATIO = 1.5
#: Rows that median is taken over.
JUMP_ROWS = 10


@dataclass(frozen=True, slots=True)
class Jump:
    """A rise of the logged learning rate: at `step`, from `before` to `after`."""

    step: int
    before: float
    after: float

    @property
    def factor(self) -> float:
        """How many times higher the learning rate became."""
        return self.after / self.before if self.before > 0 else float("inf")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known around one spike.

    Attributes:
        spike: the spike.
        alarms: alarms in the window before the onset that announce this spike and no earlier one.
        stability: those of them that speak of the whole model's stability ratio.
        jump: the learning-rate rise just before the onset, None where there was none.
        last_stable: last checkpoint before the jump, or before the onset, with S < 1: step and S.
        before: last measured point before the onset with known S: step and S.
        after: first measured point at or after the onset with known S: step and S.
        learning_rate: rate of the update before the onset, None where it is not logged.
        resolution: steps from the last point at which S was measured before the first stability alarm to that
            alarm; the checkpoint gap where there is no alarm or nothing before it.
        logged_every: steps between two rows of the log.
        gap: checkpoint gap.
        zoomed: steps at which S was measured by zooming, not at a checkpoint.
    """

    spike: Spike
    alarms: tuple[Alarm, ...]
    stability: tuple[Alarm, ...]
    jump: Jump | None
    last_stable: tuple[int, float] | None
    before: tuple[int, float] | None
    after: tuple[int, float] | None
    learning_rate: float | None
    resolution: int
    logged_every: int
    gap: int = 1
    zoomed: frozenset[int] = frozenset()

    @property
    def first_alarm(self) -> Alarm | None:
        """The earliest stability alarm; of two at the same step the one that is known to the step."""
        return _first(self.stability)

    def place(self, step: int) -> str:
        """Name where S was measured.

        Returns:
            "checkpoint 192", "step 185" where it was measured by zooming.
        """
        return f"{'step' if step in self.zoomed else 'checkpoint'} {step}"


def _first(stability: Sequence[Alarm]) -> Alarm | None:
    return min(stability, key=lambda alarm: (alarm.known_at, alarm.rule != "headroom"), default=None)


def annotated(alarms: Sequence[Alarm], spikes: Sequence[Spike], window: int = 80) -> tuple[Alarm, ...]:
    """Write into each alarm the spike it came before: the next one, if it starts within the window.

    Returns:
        The alarms, sorted by known_at, with `spike` set or None.
    """
    onsets = sorted((spike.onset, spike.id) for spike in spikes)
    result = []
    for alarm in sorted(alarms, key=lambda alarm: (alarm.known_at, alarm.step, alarm.rule, alarm.layer)):
        following = next(((onset, number) for onset, number in onsets if onset > alarm.known_at), None)
        near = following is not None and following[0] - alarm.known_at <= window
        result.append(replace(alarm, spike=following[1] if near and following is not None else None))
    return tuple(result)


def find_jump(log: pl.DataFrame | None, onset: int) -> Jump | None:
    """Find a rise of the logged learning rate in the steps just before an onset.

    The rate logged at step s is that of update s, so a rise at the onset itself comes too late to cause it.

    Returns:
        The first rise, None where there is none or no rate is logged.
    """
    steps, rates = column(log, "learning_rate")
    for k in range(1, steps.size):
        if onset - JUMP_STEPS <= steps[k] < onset:
            before = float(np.median(rates[max(0, k - JUMP_ROWS) : k]))
            one_step = rates[k - 1] > 0 and rates[k] >= JUMP_RATIO * rates[k - 1]
            if np.isfinite(rates[k]) and one_step and rates[k] >= JUMP_RATIO * before:
                return Jump(int(steps[k]), float(rates[k - 1]), float(rates[k]))
    return None


def gather(
    profile: pl.DataFrame,
    log: pl.DataFrame | None,
    spike: Spike,
    alarms: Sequence[Alarm],
    gap: int | None,
) -> Evidence:
    """Collect what is known around one spike.

    Args:
        profile: the long table; may be empty.
        log: the log's rows.
        spike: the spike.
        alarms: annotated alarms.
        gap: checkpoint gap.

    Returns:
        The evidence.
    """
    steps, values = points(profile, "hessian.stability_ratio")
    mine = tuple(alarm for alarm in alarms if alarm.spike == spike.id and alarm.severity != "info")
    jump = find_jump(log, spike.onset)
    headroom = [alarm.known_at for alarm in mine if alarm.rule == "headroom"]
    edge = min([*headroom, *([jump.step] if jump else []), spike.onset]) - 1
    # S of a single step is noisy, and only a checkpoint can be gone back to.
    saved_steps, saved = points(of_checkpoints(profile), "hessian.stability_ratio")
    stable = saved < 1
    logged, rates = column(log, "learning_rate")
    rate = last_at_or_before(logged, rates, spike.onset - 1)
    if rate is None:
        rate = last_at_or_before(*points(profile, "optimizer.learning_rate"), spike.onset - 1)
    stability = tuple(alarm for alarm in mine if alarm.rule in STABILITY_RULES and alarm.layer == "")
    first = _first(stability)
    near = None if first is None else spacing_at(steps[np.isfinite(values)], first.known_at)
    return Evidence(
        spike=spike,
        alarms=mine,
        stability=stability,
        jump=jump,
        last_stable=last_at_or_before(saved_steps[stable], saved[stable], edge),
        before=last_at_or_before(steps, values, spike.onset - 1),
        after=first_after(steps, values, spike.onset - 1),
        learning_rate=None if rate is None else rate[1],
        resolution=near or gap or 1,
        logged_every=spacing(logged),
        gap=gap or 1,
        zoomed=zoomed_steps(profile, "hessian.stability_ratio"),
    )


def largest_stable_rate(profile: pl.DataFrame, step: int) -> float | None:
    """lr/S at a checkpoint, from the profile's own column or from its two factors.

    Returns:
        The largest learning rate that is stable at this checkpoint, None where S is unknown there.
    """
    steps, values = points(profile, "optimizer.largest_stable_lr")
    at = np.flatnonzero(steps == step)
    if at.size and np.isfinite(values[at[0]]):
        return float(values[at[0]])
    ratio_steps, ratio = points(profile, "hessian.stability_ratio")
    rate_steps, rate = points(profile, "optimizer.learning_rate")
    here, there = np.flatnonzero(ratio_steps == step), np.flatnonzero(rate_steps == step)
    if here.size and there.size and ratio[here[0]] > 0 and np.isfinite(ratio[here[0]]):
        return float(rate[there[0]] / ratio[here[0]])
    return None


def stability_at(profile: pl.DataFrame, step: int) -> str:
    """Spell S at a checkpoint, with its range over training batches where that is wide.

    Returns:
        "0.594 (0.459 to 1.12 between batches)", "0.95" where the batches agree within a tenth.
    """
    import polars as pl

    row = one_source(series(profile, "hessian.stability_ratio")).filter(pl.col("step") == step)
    if not row.height:
        return "not known"
    value, low, high = (row[name][0] for name in ("value", "low", "high"))
    if low is None or high is None or (low >= 0.9 * value and high <= 1.1 * value):
        return number(value)
    return f"{number(value)} ({number(low)} to {number(high)} between batches)"


def left_unmeasured(profile: pl.DataFrame) -> bool:
    """Tell whether S was left out by choice: optimizer state was read, but the tier stopped short of curvature.

    Returns:
        True where another run of the program would know S.
    """
    if not profile.width:
        return False
    measured = set(profile["quantity"].unique())
    return "optimizer.learning_rate" in measured and "hessian.stability_ratio" not in measured


def number(value: float) -> str:
    """Spell a number the way the report prints it.

    Returns:
        Three significant digits at most.
    """
    return f"{value:.2g}" if abs(value) < 1e-2 or abs(value) >= 1e4 else f"{value:.3g}"
