"""The arms of a retraining as data: strips on one step axis, the twins' band, each spike's peak."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hnf_offline.report.chart import (
    Array,
    Level,
    Line,
    Mark,
    Strip,
    Window,
    fitting_scale,
    not_finite_windows,
)
from hnf_offline.report.colours import ARM_DASHES, ARMS_LIGHT
from hnf_offline.report.retraining_words import edge_crossing, highest, policy_name
from hnf_offline.report.series import logged
from hnf_offline.report.text import loss, number
from hnf_offline.retraining import Arm, Retraining, Twins

if TYPE_CHECKING:
    import polars as pl

#: Share of the retrained steps that is shown of the log before they begin.
CONTEXT = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """The range of the twins at each step.

    Attributes:
        steps: the steps, sorted.
        low: lowest value; not finite where a twin was not.
        high: highest value.
        label: what it is.
    """

    steps: Array
    low: Array
    high: Array
    label: str


@dataclass(frozen=True, slots=True)
class Peak:
    """A spike of one arm, marked where its loss is highest; one that is not finite is a ribbon instead."""

    step: float
    value: float
    role: str


@dataclass(frozen=True, slots=True)
class Ribbon:
    """A stretch in which one arm's loss is not finite, in the row of that arm."""

    window: Window
    row: int


@dataclass(frozen=True, slots=True)
class ArmsStrip:
    """A strip with what only retrainings have.

    Attributes:
        strip: lines, thresholds and axis.
        bands: shaded ranges, drawn below the lines.
        peaks: peaks of spikes.
        ribbons: stretches that are not finite.
        named: whether each line is named at its right end.
    """

    strip: Strip
    bands: tuple[Band, ...] = ()
    peaks: tuple[Peak, ...] = ()
    ribbons: tuple[Ribbon, ...] = ()
    named: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """Strips of all arms on one step axis.

    Attributes:
        name: file name of the figure, without ending.
        title: one sentence that states the finding.
        first: left end of the axis.
        last: right end of the axis.
        strips: from top to bottom.
        marks: vertical lines.
        checkpoints: ticks on the axis.
    """

    name: str
    title: str
    first: float
    last: float
    strips: tuple[ArmsStrip, ...]
    marks: tuple[Mark, ...] = ()
    checkpoints: tuple[float, ...] = ()


def arm_style(place: int) -> tuple[str, str]:
    """Choose how an arm is drawn; the first, "as was", in ink.

    Args:
        place: 0 for "as was", 1, 2, ... for the policies.

    Returns:
        Role (what decides the colour) and dash.
    """
    if place == 0:
        return "was", "solid"
    turn, colour = divmod(place - 1, len(ARMS_LIGHT))
    return f"arm{colour}", ARM_DASHES[turn % len(ARM_DASHES)]


def arm_label(place: int, arm: Arm) -> str:
    """Name an arm in the picture and the tables alike.

    Returns:
        "as was", "1 lr-cap=0.0084".
    """
    return policy_name(arm) if place == 0 else f"{place} {policy_name(arm)}"


def picture(retraining: Retraining, run_log: pl.DataFrame | None) -> Picture | None:
    """Build the picture: losses beside the log, S, gradient norm, learning rate.

    Returns:
        The picture, None where no arm was trained.
    """
    if not retraining.arms:
        return None
    strips = [
        loss_strip(retraining, run_log),
        difference_strip(retraining, run_log) if retraining.kind == "zoom" else None,
        _strip(retraining, "stability_ratio", "S (stability ratio)", 130),
        _strip(retraining, "grad_norm", "gradient norm", 90),
        _strip(retraining, "learning_rate", "learning rate", 70),
    ]
    first, last = float(retraining.start), float(max(retraining.stop, retraining.start + 1))
    return Picture(
        name="retraining",
        title=title(retraining),
        first=first - max(1.0, round(CONTEXT * (last - first))) if logged(run_log, "loss")[0].size else first,
        last=last,
        strips=tuple(strip for strip in strips if strip is not None),
        marks=_marks(retraining),
        checkpoints=(first, *(float(check.step) for check in retraining.reproduction.weights)),
    )


def title(retraining: Retraining) -> str:
    """State the finding of the picture.

    Returns:
        One sentence.
    """
    as_was, *others = retraining.arms
    top = highest(as_was.steps, as_was.loss)
    peak = (
        "as was, no loss was computed"
        if top is None
        else f"as was, the loss reaches {loss(top[0])} at {top[1]:,}"
    )
    if retraining.kind == "zoom":
        crossed = edge_crossing(as_was)
        edge = "" if crossed is None else f"; S is above 1 from {crossed:,}"
        return f"Retrained from checkpoint {retraining.start:,}: {peak}{edge}"
    opening = peak[0].upper() + peak[1:]
    if not others:
        return opening
    calm = sum(not arm.spikes for arm in others)
    policies = "the policy" if len(others) == 1 else f"{len(others)} policies"
    return (
        f"{opening}; no spike under {calm} of {policies}"
        if len(others) > 1
        else f"{opening}; {'no spike' if calm else 'a spike'} under {policies}"
    )


def points(steps: tuple[int, ...], values: tuple[float | None, ...]) -> tuple[Array, Array]:
    """Make arrays of a series, leaving out steps without a value.

    Returns:
        Steps and values; NaN and infinities kept.
    """
    known = [(step, value) for step, value in zip(steps, values, strict=False) if value is not None]
    return np.array([step for step, _ in known], float), np.array([value for _, value in known], float)


def series(arm: Arm, column: str) -> tuple[Array, Array]:
    """Read one series of an arm.

    Returns:
        Steps and values.
    """
    steps = arm.stability_steps if column == "stability_ratio" else arm.steps
    return points(steps, getattr(arm, column))


def loss_strip(retraining: Retraining, run_log: pl.DataFrame | None) -> ArmsStrip:
    """Make the strip of the losses: the log as a broad pale line, the arms over it.

    Returns:
        The strip.
    """
    lines = _lines(retraining, "loss")
    steps, values = logged(run_log, "loss")
    far = retraining.start - max(1.0, round(CONTEXT * (retraining.stop - retraining.start)))
    inside = (steps >= far) & (steps <= retraining.stop)
    if inside.any():
        lines.insert(0, Line("logged", "logged", steps[inside], values[inside]))
    bands = () if retraining.twins is None else _bands(retraining.twins)
    every = np.concatenate([
        *(line.values for line in lines),
        *(end for b in bands for end in (b.low, b.high)),
    ])
    peaks = [
        Peak(float(spike.peak), spike.loss_peak, arm_style(place)[0])
        for place, arm in enumerate(retraining.arms)
        for spike in arm.spikes
        if retraining.start < spike.peak <= retraining.stop and math.isfinite(spike.loss_peak)
    ]
    many = len(retraining.arms)
    return ArmsStrip(
        Strip("loss", tuple(lines), scale=fitting_scale(every), height=190 + 14 * max(0, many - 8)),
        bands=bands,
        peaks=tuple(peaks),
        ribbons=_ribbons(lines),
        named=True,
    )


def _bands(twins: Twins) -> tuple[Band, ...]:
    if not twins.steps:
        return ()
    steps, low, high = (np.array(one, float) for one in (twins.steps, twins.low, twins.high))
    return (Band(steps, low, high, "range of the twins"),)


def difference_strip(retraining: Retraining, run_log: pl.DataFrame | None) -> ArmsStrip | None:
    """Make the strip of the retrained loss over the logged one.

    Returns:
        The relative difference, None where nothing can be compared or nothing differs.
    """
    of_log = dict(zip(*(one.tolist() for one in logged(run_log, "loss")), strict=True))
    steps, values = series(retraining.arms[0], "loss")
    shared = [
        (step, value, of_log[step]) for step, value in zip(steps, values, strict=True) if step in of_log
    ]
    known = [(step, (a - b) / abs(b)) for step, a, b in shared if b and math.isfinite(a) and math.isfinite(b)]
    if not known or all(difference == 0 for _, difference in known):
        return None
    at, difference = (np.array(one, float) for one in zip(*known, strict=True))
    line = Line("difference", "was", at, difference, marker="circle", reach=1.5)
    largest = number(float(np.abs(difference).max()), 2)
    level = Level(0.0, f"equal; at most {largest} apart")
    strip = Strip("loss, retrained over logged, relative", (line,), (level,), height=90)
    return ArmsStrip(strip)


def _lines(retraining: Retraining, column: str) -> list[Line]:
    lines = []
    for place, arm in enumerate(retraining.arms):
        steps, values = series(arm, column)
        if steps.size:
            role, dash = arm_style(place)
            marker = "circle" if column == "stability_ratio" else ""
            reach = None if column == "stability_ratio" else 1.5
            lines.append(
                Line(arm_label(place, arm), role, steps, values, dash=dash, marker=marker, reach=reach)
            )
    # The run itself lies over its policies, which begin as the same line.
    return [*(line for line in lines if line.role != "was"), *(line for line in lines if line.role == "was")]


def _strip(retraining: Retraining, column: str, label: str, height: int) -> ArmsStrip | None:
    lines = _lines(retraining, column)
    if not lines:
        return None
    edge = column == "stability_ratio"
    values = np.concatenate([line.values for line in lines])
    scale = fitting_scale(np.append(values, 1.0) if edge else values)
    levels = (Level(1.0, "1 = edge of stability"),) if edge else ()
    return ArmsStrip(Strip(label, tuple(lines), levels, scale=scale, height=height), ribbons=_ribbons(lines))


def _ribbons(lines: list[Line]) -> tuple[Ribbon, ...]:
    found: list[Ribbon] = []
    row = 0
    for line in lines:
        windows = not_finite_windows(line.steps, line.values)
        found += [Ribbon(replace(window, label=f"{line.label}: {window.label}"), row) for window in windows]
        row += bool(windows)
    return tuple(found)


def _marks(retraining: Retraining) -> tuple[Mark, ...]:
    marks = [Mark(float(retraining.start), f"retrained from {retraining.start:,}", "dotted", "resume")]
    as_was = retraining.arms[0]
    marks += [
        Mark(float(spike.onset), f"spike at {spike.onset:,}", "solid")
        for spike in as_was.spikes
        if retraining.start < spike.onset <= retraining.stop
    ]
    crossed = edge_crossing(as_was)
    if retraining.alarms:
        known = retraining.alarms[0].known_at
        marks.append(Mark(float(known), f"alarm known at {known:,}", "dashed", "spike"))
    elif crossed is not None and retraining.kind == "zoom":
        marks.append(Mark(float(crossed), f"S above 1 at {crossed:,}", "dashed", "spike"))
    return tuple(marks)
