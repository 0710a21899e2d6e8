"""The same panels with matplotlib, for the PNG files. Each function returns a Figure and never shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hnf_offline.report.axis import Axis, value_axis
from hnf_offline.report.chart import Chart, Line, Strip, Window
from hnf_offline.report.colours import SERIES
from hnf_offline.report.evidence import Predictors, Raster, share
from hnf_offline.report.layer_map import BAND_NAMES, LayerMap
from hnf_offline.report.pooling import column_slots, slot_values
from hnf_offline.report.svg_map import colours_of, ends, indices
from hnf_offline.report.text import axis_number, clean, number

_DASH = {"solid": "-", "dashed": "--", "dotted": ":"}
_SHAPE = {"triangle": "^", "down": "v", "diamond": "D", "square": "s", "cross": "X", "circle": "o"}
# A layer name may hold "$", which must not be read as mathematics.
MOST_DOTS = 3000
STYLE = {
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.6,
}
_WINDOW: dict[str, dict[str, Any]] = {
    "lead": {"facecolor": "#E69F00", "alpha": 0.18, "linewidth": 0},
    "gap": {"facecolor": "#9ca3af", "alpha": 0.3, "linewidth": 0},
    "not-finite": {"facecolor": "#f3f4f6", "hatch": "////", "edgecolor": "#6b7280", "linewidth": 0},
}


def chart(panel: Chart) -> Figure:
    """Draw a chart.

    Returns:
        The figure.
    """
    with mpl.rc_context(STYLE):
        heights = [strip.height for strip in panel.strips]
        if panel.events:
            heights.insert(1, 16 * len(panel.events) + 8)
        figure = Figure(figsize=(10, (sum(heights) + 110) / 78), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
        remaining = list(axes)
        for place, strip in enumerate(panel.strips):
            _strip(remaining.pop(0), strip, panel)
            if place == 0 and panel.events:
                _events(remaining.pop(0), panel)
        for axis in axes:
            for window in panel.windows:
                _shade(axis, window)
            for mark in panel.marks:
                axis.axvline(mark.step, color=SERIES[mark.role], linestyle=_DASH[mark.dash], linewidth=1)
        axes[-1].set_xlabel(panel.axis)
        axes[-1].set_xlim(panel.first, panel.last)
        if panel.checkpoints:
            ends_of = axes[-1].get_xaxis_transform()
            axes[-1].plot(
                panel.checkpoints, np.zeros(len(panel.checkpoints)), "|", color="#6b7280", transform=ends_of,
                markersize=6, clip_on=False,
            )  # fmt: skip
        figure.suptitle(_wrapped(panel.title), fontsize=10, x=0.01, ha="left")
    return figure


def _strip(axis: Any, strip: Strip, panel: Chart) -> None:
    ends_of = value_axis(strip, 0.0, 1.0, panel.first, panel.last)
    for line in strip.lines:
        _line(axis, line, strip, ends_of.high)
    for level in strip.levels:
        axis.axhline(level.value, color="#444444", linestyle=(0, (5, 3)), linewidth=1)
        axis.text(
            0.005, level.value, level.label, transform=axis.get_yaxis_transform(), va="bottom", fontsize=8
        )
    for window in strip.windows:
        _shade(axis, window)
        axis.text(window.first, 0.03, window.label, transform=axis.get_xaxis_transform(), fontsize=8)
    plain_scale(axis, ends_of, strip.height)
    axis.set_ylabel(strip.label)
    if len(strip.lines) > 1:
        axis.legend(fontsize=8, frameon=False)


def plain_scale(axis: Any, ends_of: Axis, height: int) -> None:
    """Give a vertical axis the scale, ends and ticks of the page's picture, numbers in plain text.

    matplotlib spells the powers of a log axis as mathematics, which is switched off for the sake of layer names.
    """
    axis.set_yscale(ends_of.scale)
    axis.set_ylim(ends_of.low, ends_of.high)
    ticks = ends_of.ticks(max(2, height // 40))
    axis.set_yticks(ticks, [axis_number(tick) for tick in ticks])
    axis.minorticks_off()


def _line(axis: Any, line: Line, strip: Strip, high: float) -> None:
    values = np.where(np.isfinite(line.values), line.values, np.nan)
    if strip.cap is not None:
        for place in np.flatnonzero(values > strip.cap)[:5]:
            axis.annotate(
                f"↑ {number(float(values[place]))}", (line.steps[place], high), fontsize=8, va="top"
            )
        values = np.minimum(values, high)
    steps, drawn = line.steps, values
    if line.reach is not None and len(steps) > 1:
        far = np.flatnonzero(np.diff(steps) > line.reach) + 1
        steps, drawn = np.insert(steps, far, steps[far]), np.insert(values, far, np.nan)
    axis.plot(
        steps, drawn, color=SERIES[line.role], linestyle=_DASH[line.dash], linewidth=1.2, label=line.label
    )
    if line.low is not None and line.high is not None:
        bars = line.may_be_marked()
        axis.vlines(line.steps[bars], line.low[bars], line.high[bars], color=SERIES[line.role], linewidth=0.8)
    if line.marker:
        hollow = line.hollow if line.hollow is not None else np.zeros(len(values), dtype=bool)
        marked = line.may_be_marked()
        for chosen, fill in ((marked & ~hollow, SERIES[line.role]), (marked & hollow, "white")):
            axis.plot(
                line.steps[chosen], values[chosen], _SHAPE[line.marker], color=SERIES[line.role],
                markerfacecolor=fill, markersize=3.5, linestyle="none",
            )  # fmt: skip


def _events(axis: Any, panel: Chart) -> None:
    for row, events in enumerate(panel.events):
        places = np.full(len(events.steps), -row)
        axis.plot(events.steps, places, _SHAPE[events.marker], color=SERIES[events.role], markersize=5)
    axis.set_ylim(-len(panel.events) + 0.4, 0.6)
    axis.set_yticks([-row for row in range(len(panel.events))], [clean(one.label) for one in panel.events])
    axis.grid(visible=False, axis="x")
    axis.spines["left"].set_visible(False)


def _shade(axis: Any, window: Window) -> None:
    axis.axvspan(window.first, window.last, **_WINDOW[window.role])


def layer_map(grid: LayerMap) -> Figure:
    """Draw a map under its loss strip, both on one step axis.

    Returns:
        The figure.
    """
    from matplotlib.colors import ListedColormap, NoNorm

    with mpl.rc_context(STYLE):
        tall = min(max(len(grid.rows) * 0.16, 1.6), 7.0)
        figure = Figure(figsize=(10, tall + 1.9), layout="constrained")
        FigureCanvasAgg(figure)
        above, axis = figure.subplots(2, 1, sharex=True, height_ratios=[1.0, tall])
        for strip in grid.strip.strips:
            _strip(above, strip, grid.strip)
        slots, start, stop = column_slots(grid, grid.strip.first, grid.strip.last)
        values = slot_values(grid, slots, start, stop)
        broken = np.where(slots >= 0, grid.broken[:, np.maximum(slots, 0)], False)
        colours = ListedColormap(colours_of(grid) / 255.0)
        cells = np.ma.masked_equal(indices(grid, values, broken), 0)
        axis.patch.set(facecolor="#f3f4f6", edgecolor="#c3c9d2", hatch="////", linewidth=0)
        open_rows, open_columns = np.nonzero(~grid.certified & ~np.isnan(grid.values))
        if 0 < len(open_rows) <= MOST_DOTS:
            axis.plot(grid.steps[open_columns], open_rows, ".", color="#111111", markersize=2)
        axis.imshow(
            cells, aspect="auto", interpolation="nearest", cmap=colours, norm=NoNorm(),
            extent=(start, stop, len(grid.rows) - 0.5, -0.5),
        )  # fmt: skip
        for mark in grid.strip.marks:
            for one in (above, axis):
                one.axvline(mark.step, color="#111111", linestyle=_DASH[mark.dash], linewidth=0.9)
        every = max(1, -(-len(grid.rows) // 45))
        axis.set_yticks(
            range(0, len(grid.rows), every), [row.label for row in grid.rows[::every]], fontsize=7
        )
        axis.grid(visible=False)
        axis.set_xlim(grid.strip.first, grid.strip.last)
        axis.set_xlabel("step; " + (", ".join(BAND_NAMES) if grid.form == "bands" else _key(grid)))
        figure.suptitle(_wrapped(grid.title), fontsize=10, x=0.01, ha="left")
    return figure


def _key(grid: LayerMap) -> str:
    low, middle, high = ends(grid)
    return f"blue {low} or less {middle} red {high} or more"


def raster(panel: Raster) -> Figure:
    """Draw the alarms before each onset.

    Returns:
        The figure.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.6 + 0.26 * len(panel.rows)), layout="constrained")
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        if panel.resolution is not None:
            label = "checkpoint gap"
            for first, last in panel.unresolved():
                axis.fill_between(
                    (0, panel.resolution), 0.5 - last, 0.5 - first, label=label, **_WINDOW["gap"]
                )
                label = "_nolegend_"
        for rule in panel.rules:
            points = [
                (lead, -place)
                for place, row in enumerate(panel.rows)
                for name, lead in row.alarms
                if name == rule
            ]
            from hnf_offline.report.key_picture import marker

            axis.plot(
                *zip(*points, strict=True), _SHAPE[marker(rule)], color=SERIES["alarm"], label=clean(rule)
            )
        axis.axvline(0, color=SERIES["spike"])
        axis.set_xlim(panel.window, -panel.window / 60)
        axis.set_ylim(-len(panel.rows) + 0.4, 0.6)
        axis.set_yticks([-place for place in range(len(panel.rows))], [row.label for row in panel.rows])
        chance = [
            f"{one.rule}: {share(one.recall)}, at random {share(one.chance)}" for one in panel.chance[:3]
        ]
        axis.set_xlabel("\n".join(["steps before onset", *chance]))
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, frameon=False, loc="upper left")
        figure.suptitle(_wrapped(panel.title), fontsize=10, x=0.01, ha="left")
    return figure


def predictors(panel: Predictors) -> Figure:
    """Draw recall over precision with chance beside each rule.

    Returns:
        The figure.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        for place, dot in enumerate(panel.dots, start=1):
            colour = SERIES["rest"] if dot.baseline else SERIES["alarm"]
            if dot.chance_precision is not None and dot.chance_recall is not None:
                axis.plot(
                    [dot.chance_precision, dot.precision],
                    [dot.chance_recall, dot.recall],
                    ":",
                    color="#9ca3af",
                )
                axis.plot(dot.chance_precision, dot.chance_recall, "x", color="#6b7280", markersize=4)
            axis.plot(
                dot.precision, dot.recall, "s" if dot.baseline else "o", color=colour,
                markerfacecolor="white" if dot.baseline else colour, linestyle="none",
                label=f"{place} {clean(dot.label)[:52]}" + (" (baseline)" if dot.baseline else ""),
            )  # fmt: skip
            axis.annotate(
                str(place), (dot.precision, dot.recall), (4, 4), textcoords="offset points", fontsize=8
            )
        axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.06), xlabel="precision (× = chance)", ylabel="recall")
        if panel.dots:
            axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        figure.suptitle(_wrapped(panel.title), fontsize=10, x=0.01, ha="left")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Save a figure as PNG, without the time or version that would make two equal ones differ."""
    with mpl.rc_context(STYLE):
        figure.savefig(path, dpi=110, metadata={"Software": None})


def _wrapped(title: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(clean(title), 110))
