"""The PNG figures spell what they show so that a reader can read it."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from hnf_offline.report import figures, retraining_figures
from hnf_offline.report.chart import Chart, Line, Strip
from hnf_offline.report.retraining_panels import picture

from . import retrainings


def chart(*values: float, scale: str) -> Chart:
    steps = np.arange(len(values), dtype=float)
    line = Line("loss $a$_b", "loss", steps, np.array(values))
    return Chart("key", "a layer named $x$", 0.0, len(values) - 1.0, (Strip("loss", (line,), scale=scale),))


def labels(figure: Figure) -> list[list[str]]:
    figure.canvas.draw()
    return [[one.get_text() for one in axis.get_yticklabels()] for axis in figure.axes]


def test_ticks_of_a_log_axis_are_plain_numbers() -> None:
    (told,) = labels(figures.chart(chart(0.05, 0.4, 12.0, scale="log")))
    assert told == ["0.1", "1", "10"]


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_numbers_on_an_axis_are_told_apart(scale: str) -> None:
    (told,) = labels(figures.chart(chart(0.00025, 0.0005, 0.00075, 0.0011, scale=scale)))
    assert len(told) > 1
    assert len(set(told)) == len(told)
    assert all(float(one) > 0 or one == "0" for one in told)


def test_no_figure_spells_mathematics() -> None:
    one = retrainings.many()
    panel = picture(one, retrainings.log_of(one.arms[0]))
    assert panel is not None
    drawn = [retraining_figures.picture(panel), figures.chart(chart(0.01, 5.0, 700.0, scale="log"))]
    told = [label for figure in drawn for of_axis in labels(figure) for label in of_axis]
    assert any(told)
    assert not [label for label in told if "$" in label or "mathdefault" in label]
