"""The same picture with matplotlib, for the PNG files."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hnf_offline.report.axis import Axis, value_axis
from hnf_offline.report.chart import Line
from hnf_offline.report.colours import ARMS_LIGHT, SERIES
from hnf_offline.report.figures import STYLE, plain_scale
from hnf_offline.report.retraining_panels import ArmsStrip, Picture
from hnf_offline.report.retraining_svg import framed
from hnf_offline.report.text import clean
from hnf_offline.retraining import LargestStable

_DASH = {"solid": "-", "dashed": (0, (5, 2)), "dotted": (0, (1, 1.4))}
COLOURS = {
    "was": "#16191d",
    "logged": "#b9c0ca",
    **{f"arm{place}": colour for place, colour in enumerate(ARMS_LIGHT)},
}


def picture(panel: Picture) -> Figure:
    """Draw a picture.

    Returns:
        The figure.
    """
    with mpl.rc_context(STYLE):
        heights = [one.strip.height for one in panel.strips]
        figure = Figure(figsize=(10.5, (sum(heights) + 130) / 74), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
        for axis, one in zip(axes, panel.strips, strict=True):
            _strip(axis, one, panel)
            for mark in panel.marks:
                axis.axvline(mark.step, color=SERIES[mark.role], linestyle=_DASH[mark.dash], linewidth=0.9)
        axes[-1].set_xlabel("step")
        axes[-1].set_xlim(panel.first, panel.last)
        ends_of = axes[-1].get_xaxis_transform()
        axes[-1].plot(
            panel.checkpoints, np.zeros(len(panel.checkpoints)), "|", color="#6b7280", transform=ends_of,
            markersize=6, clip_on=False,
        )  # fmt: skip
        marks = "; ".join(clean(mark.label) for mark in panel.marks[:4])
        figure.suptitle(_wrapped(f"{panel.title} ({marks})"), fontsize=10, x=0.01, ha="left")
    return figure


def _strip(axis: Any, one: ArmsStrip, panel: Picture) -> None:
    ends_of = value_axis(framed(one), 0.0, 1.0, panel.first, panel.last)
    for band in one.bands:
        low, high = (np.clip(ends, ends_of.low, ends_of.high) for ends in (band.low, band.high))
        axis.fill_between(
            band.steps, low, high, color="#E69F00", alpha=0.38, linewidth=0, label=band.label, zorder=1.7
        )
    for line in one.strip.lines:
        _line(axis, line)
    for level in one.strip.levels:
        axis.axhline(level.value, color="#444444", linestyle=(0, (5, 3)), linewidth=0.9)
    for peak in one.peaks:
        axis.plot(peak.step, peak.value, "v", color=COLOURS[peak.role], markersize=6, clip_on=False)
    for ribbon in one.ribbons:
        top = 1 - 0.06 * ribbon.row
        first, last = max(ribbon.window.first, panel.first), min(ribbon.window.last, panel.last)
        axis.axvspan(
            first, last, ymin=top - 0.05, ymax=top, facecolor="#f3f4f6", hatch="//////", edgecolor="#6b7280",
            linewidth=0,
        )  # fmt: skip
        axis.text(
            first, top - 0.025, clean(ribbon.window.label) + " ", transform=axis.get_xaxis_transform(), ha="right",
            va="center", fontsize=7,
        )  # fmt: skip
    plain_scale(axis, ends_of, one.strip.height)
    axis.set_ylabel("\n".join(one.strip.label.split(", ")), fontsize=8)
    if one.named:
        # Beside the strip: many arms would hide their own lines.
        axis.legend(fontsize=7.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.02))


def _line(axis: Any, line: Line) -> None:
    values = np.where(np.isfinite(line.values), line.values, np.nan)
    steps = line.steps
    if line.reach is not None and len(steps) > 1:
        far = np.flatnonzero(np.diff(steps) > line.reach) + 1
        steps, values = np.insert(steps, far, steps[far]), np.insert(values, far, np.nan)
    # The broad line of the log would hide a narrow band, so it lies below.
    broad = line.role == "logged"
    axis.plot(
        steps, values, color=COLOURS[line.role], linestyle=_DASH[line.dash], linewidth=4.5 if broad else 1.3,
        label=clean(line.label)[:40], marker="." if line.marker else None, markersize=3,
        zorder=1.5 if broad else 2.0,
    )  # fmt: skip


def largest_stable(found: LargestStable) -> Figure:
    """Draw every replay of the search: highest loss over learning rate, beside lr/S.

    Returns:
        The figure.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        if found.from_curvature_low is not None and found.from_curvature_high is not None:
            axis.axvspan(
                found.from_curvature_low, found.from_curvature_high, color="#0072B2", alpha=0.2, linewidth=0
            )
        if found.from_curvature is not None:
            axis.axvline(found.from_curvature, color="#0072B2", label="lr/S")
        axis.axvline(found.learning_rate, color="#6b7280", linestyle=":", label="the run's own rate")
        for spiked, shape, words in ((False, "o", "no spike"), (True, "X", "spike")):
            shown = [(rate, peak) for rate, did, peak in found.tried if did == spiked]
            drawn = [(rate, peak) for rate, peak in shown if np.isfinite(peak)]
            if drawn:
                axis.plot(*zip(*drawn, strict=True), shape, color="#16191d", linestyle="none", label=words)
            for rate in (rate for rate, peak in shown if not np.isfinite(peak)):
                axis.annotate(
                    "NaN", (rate, 0.97), xycoords=axis.get_xaxis_transform(), ha="center", fontsize=8
                )
        every = [*(rate for rate, _, _ in found.tried), found.learning_rate, found.from_curvature or 0.0]
        rates = [rate for rate in every if rate > 0 and np.isfinite(rate)]
        if rates:
            ends_of = Axis(min(rates) / 1.2, max(rates) * 1.2, 0.0, 1.0, "log")
            axis.set_xscale("log")
            axis.set_xlim(ends_of.low, ends_of.high)
            ticks = ends_of.ticks(6) if ends_of.high / ends_of.low > 100 else sorted(set(rates))
            axis.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks], rotation=40, ha="right")
            axis.minorticks_off()
        axis.set_xlabel("learning rate")
        axis.set_ylabel("highest loss")
        axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        figure.suptitle(_wrapped(found.text or "Every replay of the search"), fontsize=10, x=0.01, ha="left")
    return figure


def _wrapped(title: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(clean(title), 110))
