import json
from dataclasses import replace

import numpy as np
import pytest

from hnf_offline.comparison import LinearBarrier
from hnf_offline.report import comparison_summary, write_comparison
from hnf_offline.report.comparison_panels import both_losses, ratio_map
from hnf_offline.table import table

from . import made
from .test_page import read


@pytest.fixture(scope="module")
def runs():
    return made.spike_run(), made.healthy_run()


def test_a_is_solid_b_is_dashed_and_the_parting_is_marked(runs):
    a, b = runs
    chart = both_losses(made.comparison(), a.log, b.log, a.profile, b.profile)
    for strip in chart.strips:
        assert [(line.label, line.role, line.dash) for line in strip.lines] == [
            ("A", "a", "solid"),
            ("B", "b", "dashed"),
        ]
    assert [(mark.step, mark.dash) for mark in chart.marks] == [(140, "dashed"), (151, "solid")]
    assert chart.title == "The losses part at step 151: A 3.43, B 2.28"


def test_the_map_is_the_log_ratio_of_common_cells(runs):
    a, b = runs
    grid = ratio_map(made.comparison(), a.log, b.log, a.profile, b.profile)
    place = [row.layers[0] for row in grid.rows].index(made.GUILTY)
    column = list(grid.steps).index(150)
    assert grid.values[place, column] == pytest.approx(np.log(12))
    assert made.GUILTY in grid.title


def test_nan_in_one_run_is_a_window_with_its_name(runs):
    a, _ = runs
    bad = made.nan_run()
    chart = both_losses(made.comparison(), a.log, bad.log, a.profile, bad.profile)
    assert [window.label for window in chart.strips[0].windows] == ["B: NaN"]


def test_the_page_shows_what_differs_and_always_what_could_not_be_compared(runs, tmp_path):
    a, b = runs
    page = write_comparison(
        made.comparison(), a.log, b.log, a.profile, b.profile, tmp_path, command="hnf diff a b"
    )
    reader = read(page)
    assert reader.untitled == 0
    text = page.read_text(encoding="utf-8")
    assert text.index("Differ") < text.index("warmup") < text.index("optimizer.betas")
    assert "not stated" in text
    assert "only A has a checkpoint there" in text
    assert {one.name for one in (tmp_path / "figures").iterdir()} == {"losses.png", "ratio_map.png"}
    assert json.loads((tmp_path / "diff.json").read_text())["separations"][0]["step"] == 140
    write_comparison(made.comparison(incomparable=()), a.log, b.log, a.profile, b.profile, tmp_path)
    assert "everything measured in both runs was compared" in page.read_text(encoding="utf-8")


def test_two_runs_without_anything_in_common_still_make_a_page(tmp_path):
    page = write_comparison(made.comparison(), None, None, table(), table(), tmp_path)
    assert "Neither run has a loss log" in page.read_text(encoding="utf-8")


def test_the_summary_is_short_and_has_the_verdict_and_the_settings():
    text = comparison_summary(made.comparison(), width=100)
    lines = text.split("\n")
    assert len(lines) <= 12 and max(map(len, lines)) <= 100
    assert lines[1].startswith("◆ Differ: A and B agree until 140")
    assert "learning_rate 0.1 | 0.01, warmup not stated | 100" in text
    assert comparison_summary(made.comparison(), unicode=False).isascii()


def barrier(value, *, rounding=1e-6, certified=True, step=300):
    return LinearBarrier(
        step, value, max(0.0, value - rounding), value + rounding, 0.25, 2.34, 2.2, certified, "rows of A"
    )


@pytest.mark.parametrize(
    ("value", "certified", "words"),
    [
        (
            1.234,
            True,
            "barrier of 1.23 nats on the straight line from A to B at 300, 25% of the way, between losses",
        ),
        (5e-7, True, "no barrier on the straight line from A to B at 300, between losses 2.34 and 2.2"),
        (0.0, False, "no barrier on the straight line from A to B at 300, between losses 2.34 and 2.2"),
        (float("inf"), True, "the loss is not finite on the straight line from A to B at 300"),
    ],
)
def test_the_last_barrier_is_told_in_words(value, certified, words):
    told = replace(made.comparison(), barriers=(barrier(9.0, step=10), barrier(value, certified=certified)))
    text = " ".join(comparison_summary(told, width=200).split())
    assert words in text and ("not certified" in text) == (not certified)
    assert len(comparison_summary(told, width=40).splitlines()) <= 13


def test_barriers_are_on_the_page_and_in_the_file_where_they_were_measured(runs, tmp_path):
    a, b = runs
    told = replace(made.comparison(), barriers=(barrier(0.5, step=10), barrier(float("inf"))))
    write_comparison(told, a.log, b.log, a.profile, b.profile, tmp_path)
    page, document = (tmp_path / "index.html").read_text(), json.loads((tmp_path / "diff.json").read_text())
    assert "barrier, nats" in page and "landscape.linear_barrier" in page and "rows of A" in page
    assert [one["value"] for one in document["barriers"]] == [0.5, None]
    assert document["barriers"][1]["value_text"] == "inf"
