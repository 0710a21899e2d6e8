"""Every run of a family in small: its loss, S above it, onsets and alarms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.study.analysis import Analysed
from hnf_offline.relate.relations import PRIMARY

ACROSS = 4


def sheet(runs: Sequence[Analysed], path: Path) -> None:
    """Draw a family's runs side by side into a file."""
    drawn(runs).savefig(path, dpi=90)


def drawn(runs: Sequence[Analysed]) -> Figure:
    """Draw a family's runs side by side.

    Returns:
        A figure with two axes a run: loss with onsets and alarms, and S.
    """
    across = min(ACROSS, len(runs))
    down = math.ceil(len(runs) / across)
    figure = Figure(figsize=(3.4 * across, 1.9 * down + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    for place, run in enumerate(runs):
        axes = figure.add_subplot(down, across, place + 1)
        steps, loss = run.log["step"].to_numpy(), run.log["loss"].to_numpy()
        axes.plot(steps, loss, color="0.35", linewidth=0.8)
        axes.set_yscale("log")
        axes.set_title(run.case.name, fontsize=7)
        ratio = axes.twinx()
        known = run.scores.filter(run.scores["S"].is_not_null())
        ratio.plot(known["step"].to_numpy(), known["S"].to_numpy(), color="#b3541e", linewidth=0.8)
        ratio.axhline(1.0, color="#b3541e", linewidth=0.5, linestyle="--")
        ratio.set_yscale("log")
        # Below a decade a log axis labels its minor ticks, and with a size of their own.
        axes.tick_params(which="both", labelsize=6)
        ratio.tick_params(which="both", labelsize=6, colors="#b3541e")
        for onset in run.onsets:
            axes.axvline(onset, color="#1f5fa8", linewidth=0.7)
        for step in run.alarms.get(PRIMARY, []):
            axes.plot(step, 0.94, "v", color="#b3541e", markersize=4, transform=axes.get_xaxis_transform())
    figure.suptitle("loss (grey), S (brown), onsets (blue), stability alarms (triangles)", fontsize=8)
    return figure
