"""The picture of a log: every logged loss, its spikes numbered, what else was logged below on the same axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hnf_offline.findings import LogFindings, Spike
from hnf_offline.report.chart import (
    Array,
    Chart,
    Events,
    Line,
    Mark,
    Strip,
    Window,
    fitting_scale,
    not_finite_windows,
)
from hnf_offline.report.series import logged
from hnf_offline.report.stories import severity
from hnf_offline.report.text import axis_number, clean, plural

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

#: With more spikes than this, lines through the whole picture would hide the loss: markers below it instead.
MOST_LINES = 12
#: Numbers are this share of the axis apart, or the milder spike goes without.
APART = 0.026
#: Points drawn: the lowest and the highest of so many columns, so no spike is lost.
COLUMNS = 2000
#: Below so many decades a log axis needs ticks between the powers of ten.
FEW_DECADES = 2.5
_STRIPS = (
    ("grad_norm", "gradient norm", "gradient", 110),
    ("loss_scale", "loss scale", "rate", 80),
    ("throughput", "throughput", "rest", 80),
    ("step_time", "time of a step", "rest", 80),
)


def log_chart(findings: LogFindings, rows: pl.DataFrame) -> Chart:
    """Build the picture of a log.

    Throughput is drawn where it dropped; gradient norm and loss scale wherever they were logged.

    Returns:
        Loss over the other series, marked with spikes and restarts.
    """
    steps, values = logged(rows, "loss")
    values = _without_hidden_nan(rows, values)
    first, last = (float(steps[0]), float(steps[-1])) if steps.size else (0.0, 1.0)
    last = max(last, first + 1)
    strips = [_strip("loss", "loss", steps, values, 230, first, last)]
    slowed = any(event.kind == "throughput-drop" for event in findings.events)
    speed_drawn = False
    for column, label, role, height in _STRIPS:
        is_speed = column in {"throughput", "step_time"}
        where, series = logged(rows, column)
        if not series.size or (is_speed and (not slowed or speed_drawn)):
            continue
        if column == "loss_scale" and np.ptp(series) == 0:
            continue  # nothing to see in a scale that was fixed
        speed_drawn |= is_speed
        strips.append(_strip(label, role, where, series, height, first, last))
    lines = len(findings.spikes) <= MOST_LINES
    marks = tuple(Mark(spike.onset, str(spike.id), "solid") for spike in findings.spikes if lines)
    marks += tuple(
        Mark(step, f"restart at {step}", "dotted", "resume") for step in findings.log.get("restarts", ())
    )
    onsets = tuple(float(spike.onset) for spike in findings.spikes)
    return Chart(
        name="spikes",
        title=_title(findings),
        first=first,
        last=last,
        strips=tuple(strips),
        events=() if lines else (Events("spike onsets", onsets, "triangle"),),
        marks=marks,
    )


def log_figure(findings: LogFindings, rows: pl.DataFrame) -> Figure:
    """Draw the picture of a log; nothing is smoothed or cut.

    Returns:
        The figure.
    """
    from hnf_offline.report.figures import chart

    panel = log_chart(findings, rows)
    figure = chart(panel)
    for axis in figure.axes:
        _tick_between_powers(axis)
        for line in axis.lines:
            across = np.asarray(line.get_xdata())
            if across.size == 2 and across[0] == across[1]:
                line.set(zorder=0.9, alpha=0.7)  # a mark goes behind what it marks
    top = figure.axes[0]
    for spike in numbered(findings.spikes, panel.first, panel.last):
        top.text(
            spike.onset,
            1.01,
            str(spike.id),
            transform=top.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=8,
        )
    for place, step in enumerate(findings.log.get("restarts", ())):
        top.text(
            step, 0.98, " restarts (dotted)" if place == 0 else "", transform=top.get_xaxis_transform(), ha="left",
            va="top", fontsize=8, color="#6b7280",
        )  # fmt: skip
    return figure


def numbered(spikes: tuple[Spike, ...], first: float, last: float) -> list[Spike]:
    """Choose the spikes whose numbers do not overlap; of two too near each other the worse one keeps its own.

    Returns:
        Spikes in order of onset.
    """
    chosen: list[Spike] = []
    reach = APART * (last - first)
    for spike in sorted(spikes, key=severity, reverse=True):
        if all(abs(spike.onset - other.onset) >= reach for other in chosen):
            chosen.append(spike)
    return sorted(chosen, key=lambda spike: spike.onset)


def thinned(steps: Array, values: Array, first: float, last: float) -> tuple[Array, Array]:
    """Keep of each of 2000 columns the lowest, the highest and one broken value.

    Returns:
        Steps and values, the same where there are few.
    """
    if steps.size <= 4 * COLUMNS:
        return steps, values
    import polars as pl

    column = np.floor((steps - first) / (last - first) * COLUMNS)
    finite = np.isfinite(values)
    frame = pl.DataFrame({"row": np.arange(steps.size), "column": column, "value": values, "finite": finite})
    of_column = (
        frame
        .filter("finite")
        .group_by("column")
        .agg(
            pl.col("row").get(pl.col("value").arg_min()).alias("low"),
            pl.col("row").get(pl.col("value").arg_max()).alias("high"),
        )
    )
    broken = frame.filter(~pl.col("finite")).group_by("column").agg(pl.col("row").first())
    kept = np.unique(
        np.concatenate([of_column["low"].to_numpy(), of_column["high"].to_numpy(), broken["row"]])
    )
    return steps[kept], values[kept]


def _strip(
    label: str, role: str, steps: Array, values: Array, height: int, first: float, last: float
) -> Strip:
    windows = _joined(not_finite_windows(steps, values), (last - first) / COLUMNS)
    windows = tuple(Window(max(w.first, first), min(w.last, last), w.label, w.role) for w in windows)
    shown = thinned(steps, values, first, last)
    return Strip(
        label, (Line(label, role, *shown),), windows=windows, scale=fitting_scale(values), height=height
    )


def _tick_between_powers(axis: Any) -> None:
    low, high = axis.get_ylim()
    if axis.get_yscale() == "log" and np.log10(high / low) < FEW_DECADES:
        powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        ticks = [
            t for power in powers for t in (10.0**power, 2 * 10.0**power, 5 * 10.0**power) if low <= t <= high
        ]
        axis.set_yticks(ticks, [axis_number(tick) for tick in ticks])


def _joined(windows: tuple[Window, ...], reach: float) -> tuple[Window, ...]:
    # Stretches too near each other to be told apart become one; only the widest of many are labelled.
    joined: list[Window] = []
    for window in windows:
        if joined and window.first - joined[-1].last < reach:
            joined[-1] = Window(joined[-1].first, window.last, joined[-1].label, window.role)
        else:
            joined.append(window)
    labelled = sorted(joined, key=lambda window: window.first - window.last)[:5]
    return tuple(w if w in labelled else Window(w.first, w.last, "", w.role) for w in joined)


def _without_hidden_nan(rows: pl.DataFrame, values: Array) -> Array:
    # A loss of 0.0 beside a gradient norm that is not finite was NaN (findings count it so).
    import polars as pl

    if not values.size or "grad_norm" not in rows.columns:
        return values
    norms = rows.filter(pl.col("loss").is_not_null())["grad_norm"].cast(pl.Float64)
    hidden = (values == 0) & (~norms.is_finite()).fill_null(value=False).to_numpy()
    return np.where(hidden, np.nan, values)


def _title(findings: LogFindings) -> str:
    name = clean(", ".join(str(file) for file in findings.log.get("files", ())[:1])) or "log"
    worse = sorted({event.kind for event in findings.events if event.severity != "info"})
    spikes = plural(len(findings.spikes), "loss spike") if findings.spikes else "no loss spike"
    onsets = ", ".join(f"{spike.onset:,}" for spike in findings.spikes[:6])
    more = ", …" if len(findings.spikes) > 6 else ""
    said = f"{name}: {spikes}" + (f" (onset {onsets}{more})" if onsets else "")
    return said + (f"; {', '.join(worse)}" if worse else "")
