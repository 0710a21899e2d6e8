"""CUSUM and PELT on the same nulls: what they call a change must not be autocorrelation."""

from __future__ import annotations

import time

import numpy as np
import pytest
import ruptures
from scipy.stats import binom

from hnf_offline.detect.autocorrelation import ar1_paths, lag_one, split_gains, without_split
from hnf_offline.detect.cusum import (
    BASELINE,
    DRIFT,
    THRESHOLDS,
    change_points_cusum,
    cusum,
    drawn_threshold,
)
from hnf_offline.detect.pelt import PENALTIES, SquaredError, _rounded, change_points_pelt, drawn_multiple
from hnf_offline.synthetic import ar1

RATE = 0.05
#: Highest number of alarms that a true rate of 5 % shows in 99.9 % of all repetitions of 200 series.
ALLOWED = int(binom.ppf(0.999, 200, RATE))


def shifted(n, phi, size, at, seed):
    return ar1(n, phi, seed) + np.where(np.arange(n) >= at, size, 0.0)


@pytest.mark.parametrize("n", [30, 60, 300])
@pytest.mark.parametrize("phi", [0.0, 0.5, 0.8])
def test_cusum_keeps_its_false_alarm_rate(n, phi):
    alarms = sum(bool(cusum(path, false_alarm_rate=RATE).alarms) for path in ar1_paths(phi, n, 200, 1234))
    assert alarms <= ALLOWED


@pytest.mark.parametrize("n, series", [(30, 200), (60, 200), (300, 60)])
@pytest.mark.parametrize("phi", [0.0, 0.5, 0.8])
def test_pelt_keeps_its_false_alarm_rate(n, series, phi):
    paths = ar1_paths(phi, n, series, 4321)
    found = sum(bool(change_points_pelt(range(n), path, "q", "", false_alarm_rate=RATE)) for path in paths)
    assert found <= binom.ppf(0.999, series, RATE)


@pytest.mark.parametrize("length", [8, 20, 60, 120])
def test_the_tabulated_penalties_are_what_fresh_draws_give(length):
    tabulated = PENALTIES[_rounded(length)]
    assert drawn_multiple(_rounded(length), RATE, 99) == pytest.approx(tabulated, rel=0.12)
    assert drawn_multiple(_rounded(length), 0.5, 99) < 0.7 * tabulated


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_the_tabulated_thresholds_are_what_fresh_draws_give(epoch):
    assert drawn_threshold(BASELINE, epoch, DRIFT, RATE, 99) == pytest.approx(THRESHOLDS[epoch - 1], rel=0.06)


def test_every_length_has_its_penalty():
    assert {_rounded(length) for length in range(8, 513)} == set(PENALTIES)


def test_other_rates_are_drawn_and_kept_too():
    paths = ar1_paths(0.5, 40, 200, 77)
    found = sum(bool(change_points_pelt(range(40), path, "q", "", false_alarm_rate=0.2)) for path in paths)
    alarms = sum(bool(cusum(path, false_alarm_rate=0.2).alarms) for path in paths)
    strict = sum(bool(cusum(path, false_alarm_rate=RATE).alarms) for path in paths)
    assert found <= binom.ppf(0.999, 200, 0.2)
    assert strict <= alarms <= binom.ppf(0.999, 200, 0.2)


def test_running_sums_give_the_squared_error_of_ruptures():
    series = np.random.default_rng(5).standard_normal((60, 1)) + 1e3
    ours, theirs = SquaredError().fit(series), ruptures.costs.CostL2().fit(series)
    for start, end in [(0, 60), (0, 2), (17, 40), (58, 60)]:
        assert ours.error(start, end) == pytest.approx(theirs.error(start, end))


def test_a_first_look_at_a_new_length_is_quick():
    path = np.exp(ar1_paths(0.6, 777, 1, 0)[0])
    start = time.process_time()
    change_points_cusum(range(777), path, "q", "")
    change_points_pelt(range(777), path, "q", "")
    assert time.process_time() - start < 1


def test_an_iid_threshold_would_not():
    alarms = sum(bool(cusum(path, threshold=5.0, drift=0.5).alarms) for path in ar1_paths(0.8, 300, 100, 1))
    assert alarms > 25


@pytest.mark.parametrize("n, phi, least", [(60, 0.0, 0.6), (300, 0.5, 0.9), (300, 0.8, 0.6)])
def test_cusum_finds_most_shifts_of_three_standard_deviations(n, phi, least):
    hits = 0
    for seed in range(100):
        result = cusum(shifted(n, phi, 3.0, n // 2, seed))
        hits += any(
            row >= n // 2 and way == "up" for row, way in zip(result.alarms, result.directions, strict=True)
        )
    assert hits / 100 >= least


@pytest.mark.parametrize("n, phi, least", [(60, 0.0, 0.95), (60, 0.5, 0.8), (60, 0.8, 0.5), (120, 0.8, 0.7)])
def test_pelt_finds_most_shifts_of_three_standard_deviations_and_where(n, phi, least):
    hits = 0
    for seed in range(60):
        found = change_points_pelt(range(n), shifted(n, phi, 3.0, n // 2, seed), "q", "")
        hits += any(abs(point.step - n // 2) <= 3 and point.direction == "up" for point in found)
    assert hits / 60 >= least


def test_pelt_names_the_first_step_of_each_new_level():
    values = np.concatenate([np.full(20, 1.0), np.full(20, 5.0), np.full(20, 2.0)])
    values *= np.exp(0.05 * np.random.default_rng(0).standard_normal(60))
    found = change_points_pelt(np.arange(60) * 10, values, "hessian.lambda_max", "head")
    assert [(p.step, p.direction) for p in found] == [(200, "up"), (400, "down")]
    assert all(p.method == "pelt" and not p.causal and p.layer == "head" for p in found)


def test_cusum_change_points_are_causal_and_never_early():
    values = np.exp(0.1 * np.random.default_rng(1).standard_normal(80)) * np.where(
        np.arange(80) < 40, 1.0, 3.0
    )
    steps = np.arange(80) * 5
    found = change_points_cusum(steps, values, "q", "layer")
    assert found[0].direction == "up"
    assert found[0].causal
    assert 200 <= found[0].step <= 260
    for cut in range(1, 80):
        early = change_points_cusum(steps[:cut], values[:cut], "q", "layer")
        assert early == tuple(point for point in found if point.step <= steps[cut - 1])


@pytest.mark.parametrize("find", [change_points_cusum, change_points_pelt])
def test_short_constant_and_broken_series_have_no_change(find):
    assert find([], [], "q", "") == ()
    assert find(range(5), [1, 9, 1, 9, 1], "q", "") == ()
    assert find(range(50), np.full(50, 2.0), "q", "") == ()
    assert find(range(50), np.full(50, np.nan), "q", "") == ()
    values = np.exp(0.1 * ar1(60, 0.3, 2))
    values[[5, 50]] = [np.nan, np.inf]
    assert find(range(60), values, "q", "") == ()


@pytest.mark.parametrize("find", [change_points_cusum, change_points_pelt])
def test_the_unit_of_a_positive_quantity_does_not_matter(find):
    values = np.exp(shifted(60, 0.2, 8.0, 30, 7))
    scaled = [find(range(60), factor * values, "q", "") for factor in (1.0, 1e-9, 1e9)]
    assert scaled[0]
    assert scaled[0] == scaled[1] == scaled[2]


def test_one_wild_value_is_no_change_of_level():
    values = np.exp(0.1 * np.random.default_rng(3).standard_normal(60))
    values[30] *= 1000
    assert change_points_cusum(range(60), values, "q", "") == ()


def test_many_layers_are_quick():
    paths = np.exp(ar1_paths(0.6, 60, 200, 0))
    cusum(paths[0])
    change_points_pelt(range(60), paths[0], "q", "")
    start = time.process_time()
    for path in paths:
        change_points_cusum(range(60), path, "q", "")
        change_points_pelt(range(60), path, "q", "")
    assert time.process_time() - start < 5


def test_ar1_has_the_stated_variance_and_correlation():
    paths = ar1_paths(0.8, 2000, 20, 0)
    assert paths.var() == pytest.approx(1.0, abs=0.1)
    assert lag_one(paths).mean() == pytest.approx(0.8, abs=0.02)
    assert np.array_equal(ar1_paths(0.8, 50, 20, 0), paths[:, :50])


def test_split_gains_are_the_drop_in_squared_error():
    values = np.random.default_rng(0).standard_normal(12)
    expected = [12 * values.var() - k * values[:k].var() - (12 - k) * values[k:].var() for k in range(1, 12)]
    assert split_gains(values) == pytest.approx(expected)
    step = np.where(np.arange(12) < 5, 1.0, 4.0)
    assert without_split(step) == pytest.approx(np.zeros(12), abs=1e-12)
