"""Panels as data: stacked strips on one step axis. Both renderers, SVG and matplotlib, draw these records."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """One series.

    Attributes:
        label: what the legend says.
        role: what decides its colour: "loss", "alarm", "gradient", "rate", "a", "b", "rest".
        steps: where it was measured, sorted.
        values: NaN and infinities break the line; they are shown as windows.
        dash: "solid", "dashed" or "dotted".
        marker: "" or "circle": measured points are shown where there are few.
        low: lower ends of the error bars, NaN where there are none.
        high: upper ends of the error bars.
        hollow: points that are not certified.
        reach: longest distance over which two points are joined, None for any.
        marked: points that may carry a marker and an error bar, None for all: where a stretch was measured at
            every step, markers would hide the line.
    """

    label: str
    role: str
    steps: Array
    values: Array
    dash: str = "solid"
    marker: str = ""
    low: Array | None = None
    high: Array | None = None
    hollow: NDArray[np.bool_] | None = None
    reach: float | None = None
    marked: NDArray[np.bool_] | None = None

    def may_be_marked(self) -> NDArray[np.bool_]:
        """Say which points may carry a marker.

        Returns:
            One flag a point.
        """
        return np.ones(len(self.steps), dtype=np.bool_) if self.marked is None else self.marked


@dataclass(frozen=True, slots=True)
class Level:
    """A threshold, drawn as a horizontal line."""

    value: float
    label: str


@dataclass(frozen=True, slots=True)
class Window:
    """A shaded stretch of steps; role "lead", "not-finite" or "gap"."""

    first: float
    last: float
    label: str
    role: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line through all strips: spikes ("solid" announced, "dashed" not), resumes ("dotted")."""

    step: float
    label: str
    dash: str
    role: str = "spike"


@dataclass(frozen=True, slots=True)
class Events:
    """A thin row of markers between the strips, one row a rule."""

    label: str
    steps: tuple[float, ...]
    marker: str
    role: str = "alarm"


@dataclass(frozen=True, slots=True)
class Strip:
    """One vertical axis: lines, thresholds, and stretches that are not finite.

    Attributes:
        label: name of the quantity, with its unit where it has one.
        lines: what is drawn.
        levels: thresholds.
        windows: stretches of this strip alone.
        scale: "linear" or "log".
        cap: values above it are cut, and an arrow carries the true value; None for no cut.
        height: pixels in the page.
    """

    label: str
    lines: tuple[Line, ...]
    levels: tuple[Level, ...] = ()
    windows: tuple[Window, ...] = ()
    scale: str = "linear"
    cap: float | None = None
    height: int = 120


@dataclass(frozen=True, slots=True)
class Chart:
    """Strips on one step axis.

    Attributes:
        name: file name of the figure, without ending.
        title: one sentence that states the finding.
        first: left end of the axis.
        last: right end of the axis.
        strips: from top to bottom.
        events: rows of markers below the first strip.
        marks: vertical lines.
        windows: stretches through all strips.
        checkpoints: ticks on the axis.
        axis: what the axis counts.
    """

    name: str
    title: str
    first: float
    last: float
    strips: tuple[Strip, ...]
    events: tuple[Events, ...] = ()
    marks: tuple[Mark, ...] = ()
    windows: tuple[Window, ...] = ()
    checkpoints: tuple[float, ...] = field(default=())
    axis: str = "step"


def fitting_scale(values: Array) -> str:
    """Choose the axis that shows both the calm and the peak: log where the peak is 20 times the lowest.

    Returns:
        "log" or "linear".
    """
    finite = values[np.isfinite(values)]
    if finite.size == 0 or finite.min() <= 0:
        return "linear"
    return "log" if finite.max() / finite.min() > 20 else "linear"


def fitting_cap(values: Array) -> float | None:
    """Choose where to cut a linear axis, only where a log axis is impossible and a few values dwarf the rest.

    Returns:
        Three times the 98th percentile where less than 2 % of values exceed ten times it; None for no cut.
    """
    finite = values[np.isfinite(values)]
    if finite.size < 50 or fitting_scale(finite) == "log":
        return None
    usual = float(np.quantile(np.abs(finite), 0.98))
    return 3 * usual if usual > 0 and finite.max() > 10 * usual else None


def not_finite_windows(steps: Array, values: Array) -> tuple[Window, ...]:
    """Find the stretches in which a series is NaN or infinite; they are drawn, never left as a gap.

    Returns:
        One window a stretch, labelled NaN or ∞, reaching half-way to its finite neighbours.
    """
    broken = ~np.isfinite(values)
    windows: list[Window] = []
    edges = np.flatnonzero(np.diff(np.concatenate(([False], broken, [False])).astype(np.int8)))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        before = steps[start - 1] if start > 0 else steps[start] - 1
        after = steps[stop] if stop < len(steps) else steps[stop - 1] + 1
        label = "NaN" if np.isnan(values[start:stop]).any() else "∞"
        windows.append(
            Window((before + steps[start]) / 2, (steps[stop - 1] + after) / 2, label, "not-finite")
        )
    return tuple(windows)
