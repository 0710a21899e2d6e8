"""What was found in a log, in words and as a picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from hnf_offline.detect.log_events import log_events
from hnf_offline.detect.spikes import find_spikes
from hnf_offline.findings import LogEvent, LogFindings
from hnf_offline.report.log_picture import log_chart, log_figure, numbered, thinned
from hnf_offline.report.log_text import log_summary
from hnf_offline.synthetic import loss_with_spikes

LOG = {"files": ["log.jsonl"], "formats": ["jsonl"], "rows": 600, "losses": 600, "steps": [1, 600]}


def found(rows: pl.DataFrame, **log) -> LogFindings:
    spikes = find_spikes(rows)
    return LogFindings(LOG | log, "robust", spikes, log_events(rows, spikes))


def spiky(*onsets: int, rows: int = 600) -> pl.DataFrame:
    return loss_with_spikes(rows, list(onsets), seed=2)[0]


def test_notes_skipped_lines_and_files_are_told():
    findings = replace(
        found(spiky(300), skipped_lines=3, notes=["Two ranks wrote each line."]),
        skipped=({"path": "run/bad.csv", "reason": "is empty", "remedy": "remove it"},),
    )
    text = log_summary(findings)
    assert "3 lines of the log could not be read" in text
    assert "Two ranks wrote each line." in text
    assert "skipped run/bad.csv: is empty; remove it" in text


def test_what_comes_from_a_file_is_cleaned():
    event = LogEvent("gap", "info", 1, 9, "bad \x1b[31mname\x07")
    text = log_summary(replace(found(spiky(300), notes=["\x1b]0;x\x07note"]), events=(event,)))
    assert "\x1b" not in text
    assert "bad name" in text


def test_many_spikes_and_events_are_cut_and_counted():
    many = tuple(replace(find_spikes(spiky(300))[0], id=place, onset=place * 3) for place in range(1, 151))
    events = tuple(LogEvent("restart", "info", step, step, "again") for step in range(60))
    worst = LogEvent("loss-scale-collapse", "danger", 99, 99, "fell")
    text = log_summary(replace(found(spiky(300)), spikes=many, events=(*events, worst)))
    assert "and 50 milder ones; --json lists all" in text
    assert "and 21 more; --json lists all" in text
    assert "loss-scale-collapse" in text


def test_an_encoding_without_marks_gets_none():
    assert log_summary(found(spiky(300)), unicode=False).isascii()


def test_spikes_of_single_rows_are_remarked_upon():
    loss = 3 * np.exp(0.01 * np.random.default_rng(0).standard_normal(600))
    loss[100::60] *= 2
    text = log_summary(found(pl.DataFrame({"step": range(1, 601), "loss": loss})))
    assert "9 of them last two rows at most" in text


# --- the picture ---


def test_the_picture_shows_every_loss_its_spikes_restarts_and_what_else_was_logged():
    rows = spiky(200, 400).with_columns(
        pl.lit(1.0).alias("grad_norm"), (65536 / 2.0 ** (pl.col("step") // 100)).alias("loss_scale")
    )
    panel = log_chart(found(rows, restarts=[250]), rows)
    assert [strip.label for strip in panel.strips] == ["loss", "gradient norm", "loss scale"]
    (line,) = panel.strips[0].lines
    assert np.array_equal(line.values, rows["loss"].to_numpy())  # nothing smoothed
    assert panel.strips[0].cap is None  # nothing cut
    assert [(mark.step, mark.dash) for mark in panel.marks] == [
        (200, "solid"),
        (400, "solid"),
        (250, "dotted"),
    ]


def test_a_fixed_scale_and_a_steady_speed_are_not_drawn_and_a_drop_is():
    speed = np.where(np.arange(600) < 300, 100.0, 40.0)
    rows = spiky(200).drop("grad_norm", strict=False)
    rows = rows.with_columns(pl.lit(8.0).alias("loss_scale"), pl.Series("throughput", speed))
    assert [strip.label for strip in log_chart(found(rows), rows).strips] == ["loss", "throughput"]
    steady = rows.with_columns(pl.lit(100.0).alias("throughput"))
    assert [strip.label for strip in log_chart(found(steady), steady).strips] == ["loss"]


def test_stretches_that_are_not_finite_are_windows_hidden_ones_too():
    rows = spiky(200).with_columns(
        pl.when(pl.col("step").is_between(300, 320)).then(float("nan"))
        .when(pl.col("step").is_between(500, 510)).then(0.0).otherwise(pl.col("loss")).alias("loss"),
        pl.when(pl.col("step").is_between(500, 510)).then(float("nan")).otherwise(1.0).alias("grad_norm"),
    )  # fmt: skip
    windows = log_chart(found(rows), rows).strips[0].windows
    assert [(w.first, w.last, w.label) for w in windows] == [(299.5, 320.5, "NaN"), (499.5, 510.5, "NaN")]


def test_many_spikes_become_markers_below_the_loss():
    rows = spiky(*range(50, 1950, 100), rows=2000)
    panel = log_chart(found(rows), rows)
    assert not panel.marks
    (events,) = panel.events
    assert len(events.steps) == 19


def test_numbers_do_not_overlap_and_the_worse_spike_keeps_its_own():
    (one,) = find_spikes(spiky(300))
    mild = replace(one, id=1, onset=300, height=0.1)
    worse = replace(one, id=2, onset=302, height=5.0)
    far = replace(one, id=3, onset=500, height=0.1)
    assert [spike.id for spike in numbered((mild, worse, far), 0, 600)] == [2, 3]


def test_thinning_keeps_every_extreme():
    values = np.random.default_rng(0).standard_normal(200_000)
    values[123_456], values[77_777], values[150_000] = 50.0, -50.0, np.nan
    steps, kept = thinned(np.arange(200_000.0), values, 0.0, 199_999.0)
    assert steps.size < 10_000
    assert 123_456 in steps
    assert 77_777 in steps
    assert np.isnan(kept[steps == 150_000]).all()
    assert np.all(np.diff(steps) > 0)


@pytest.mark.parametrize(
    "loss",
    [np.full(50, np.nan), np.full(50, 2.0), np.linspace(-1, -9, 50), np.geomspace(1e-6, 1e6, 50), [3.0]],
)
def test_any_log_can_be_drawn(loss):
    rows = pl.DataFrame({"step": range(len(loss)), "loss": np.asarray(loss, dtype=float)})
    figure = log_figure(found(rows), rows)
    assert figure.axes[0].get_ylabel() == "loss"


def test_the_figure_numbers_its_spikes_above_the_loss():
    rows = spiky(200, 400)
    texts = {text.get_text() for text in log_figure(found(rows), rows).axes[0].texts}
    assert {"1", "2"} <= texts
