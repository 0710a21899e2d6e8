"""What follows from many checkpoints: planted changes, trailing windows, and a recorded run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from hnf_offline.profile import ProfileSettings
from hnf_offline.profile.course import predictiveness_rows, with_course
from hnf_offline.profile.run import profile_run
from hnf_offline.quantities.gradient_course import FEWEST_PREDICTED, PREDICTED
from hnf_offline.run import open_run
from hnf_offline.table import Row, table

FIRST, CURVED = "gradient.predictiveness", "gradient.predictiveness_curved"


def planted(measured: np.ndarray, slope: np.ndarray, curved: np.ndarray, blur: float = 0.0) -> pl.DataFrame:
    rows: list[Row] = []
    for at, (m, p, q) in enumerate(zip(measured, slope, curved, strict=True)):
        step = 10 * (at + 1)
        rows.append(Row(step, "", "model", -1, "update.measured_change", m, m - blur, m + blur, batch="rows"))
        rows.append(Row(step, "", "model", -1, "update.first_order_change", p, batch="rows"))
        rows.append(Row(step, "", "model", -1, "update.predicted_change", q, batch="rows"))
    return table(rows)


def values(rows: list[Row], quantity: str) -> dict[int, Row]:
    return {row.step: row for row in rows if row.quantity == quantity}


def test_curvature_predicts_what_slopes_do_not() -> None:
    generator = np.random.default_rng(0)
    slope, bend = -generator.uniform(0.1, 0.2, 30), generator.uniform(0.0, 0.3, 30)
    found = predictiveness_rows(planted(slope + bend, slope, slope + bend))
    first, curved = values(found, FIRST), values(found, CURVED)
    assert list(first) == list(curved) == [10 * at for at in range(FEWEST_PREDICTED, 31)]
    for row in curved.values():
        assert row.value == pytest.approx(1.0) and row.high == pytest.approx(1.0)
    for step, row in first.items():
        window = slice(max(0, step // 10 - PREDICTED), step // 10)
        measured, predicted = (slope + bend)[window], slope[window]
        spread = ((measured - measured.mean()) ** 2).sum()
        assert row.value == pytest.approx(1 - ((measured - predicted) ** 2).sum() / spread)
        assert row.value < 0.5 and row.low is not None and row.high is not None
        assert row.low < row.value < row.high <= 1
    assert first[300].batch == "16 checkpoints, steps 150 to 300"


def test_no_value_looks_ahead() -> None:
    generator = np.random.default_rng(1)
    measured, slope = generator.normal(size=(2, 25))
    whole = planted(measured, slope, slope)
    cut = whole.filter(pl.col("step") <= 150)
    assert predictiveness_rows(cut) == [row for row in predictiveness_rows(whole) if row.step <= 150]


def test_changes_that_are_not_finite_are_left_out_of_the_window() -> None:
    generator = np.random.default_rng(2)
    measured = generator.normal(size=12)
    slope = measured + 0.1 * generator.normal(size=12)
    broken = measured.copy()
    broken[3], broken[9] = math.nan, math.inf
    found = values(predictiveness_rows(planted(broken, slope, slope)), FIRST)
    assert 40 not in found and 100 not in found and list(found) == [90, 110, 120]
    kept = [at for at in range(12) if at not in {3, 9}]
    spread = ((measured[kept] - measured[kept].mean()) ** 2).sum()
    missed = ((measured[kept] - slope[kept]) ** 2).sum()
    assert found[120].value == pytest.approx(1 - missed / spread)


def test_changes_within_rounding_and_too_few_of_them_have_none() -> None:
    generator = np.random.default_rng(3)
    measured = 1e-7 * generator.normal(size=20)
    assert predictiveness_rows(planted(measured, measured, measured, blur=1e-8))
    assert not predictiveness_rows(planted(measured, measured, measured, blur=1e-7))
    few = planted(measured[:7], measured[:7], measured[:7])
    assert not predictiveness_rows(few) and with_course(few) is few


def test_a_recorded_run_has_them_from_the_cache_too(record_run, tmp_path: Path) -> None:
    run = open_run(record_run(tmp_path / "run", every=2))
    settings = ProfileSettings(tier="stability", device="cpu")
    found = profile_run(run, settings, tmp_path / "out")
    of = found.table.filter(quantity=CURVED)
    assert of["step"].to_list() == [16, 18, 20, 22, 24]
    assert (of["value"] > 0.9).all(), "twelve small steps of a small model are a parabola"
    first = found.table.filter(quantity=FIRST)
    assert (first["value"] < of["value"]).all()
    again = profile_run(run, settings, tmp_path / "out")
    assert again.cached == 12
    assert_frame_equal(again.table, found.table)
