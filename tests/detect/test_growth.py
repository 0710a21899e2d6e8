from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnf_offline.detect.growth import fit_growth, forecast, growth
from hnf_offline.synthetic import ar1


@settings(max_examples=50, deadline=None)
@given(doubling=st.floats(5, 500), start=st.floats(1e-6, 1e6), gap=st.integers(1, 50))
def test_exact_exponentials_are_recovered(doubling, start, gap):
    steps = np.arange(12) * gap
    values = start * 2 ** (steps / doubling)
    fit = fit_growth(steps, values)
    assert fit.slope == pytest.approx(np.log(2) / doubling)
    assert fit.r2 == pytest.approx(1.0)
    assert fit.crossing(start * 2 ** ((steps[-1] + 30) / doubling)) == pytest.approx(steps[-1] + 30, abs=1e-6)


def test_the_interval_of_the_slope_allows_for_correlated_residuals():
    covered = wrong = 0
    for seed in range(300):
        steps = np.arange(40)
        fit = fit_growth(steps, np.exp(0.02 * steps + 0.3 * ar1(40, 0.6, seed)))
        covered += fit.low <= 0.02 <= fit.high
        plain = (fit.high - fit.low) / 2
        wrong += plain <= 0
    assert covered / 300 >= 0.9
    assert wrong == 0


def test_unusable_values_are_left_out():
    assert fit_growth([1, 2, 3], [0.0, -1.0, np.nan]) is None
    assert fit_growth([1], [2.0]) is None
    assert fit_growth([3, 3], [1.0, 2.0]) is None
    assert fit_growth([1, 2, 3], [1.0, np.nan, 4.0]).slope == pytest.approx(np.log(4) / 2)
    assert fit_growth([1, 2], [1.0, 2.0]).low == -np.inf


def test_a_growing_stretch_is_found_with_doubling_time_and_crossing():
    steps = np.arange(60) * 8
    values = np.where(steps < 200, 0.45, 0.45 * 2 ** ((steps - 200) / 100.0))
    values = np.minimum(values, 0.9) * np.exp(0.01 * np.random.default_rng(0).standard_normal(60))
    (found,) = growth(steps, values, "hessian.stability_ratio", "", 1.0)
    assert 170 <= found.start <= 210
    assert 280 <= found.end <= 330
    assert found.low < 100 < found.high
    assert found.threshold == 1.0
    assert found.projected_step is None or found.projected_step > found.end


def test_the_projected_crossing_is_where_the_growth_leads():
    steps = np.arange(20) * 10
    (found,) = growth(steps, 0.1 * 2 ** (steps / 80), "q", "layer", 1.0)
    assert (found.start, found.end) == (0, 190)
    assert found.doubling_steps == pytest.approx(80)
    assert found.projected_step == pytest.approx(80 * np.log2(10))


def test_flat_falling_and_noisy_series_do_not_grow():
    steps = np.arange(60)
    assert growth(steps, np.full(60, 2.0), "q", "") == ()
    assert growth(steps, np.exp(-steps / 20), "q", "") == ()
    assert sum(len(growth(steps, np.exp(0.05 * ar1(60, 0.0, seed)), "q", "")) for seed in range(20)) == 0


@pytest.mark.parametrize("gap", [4, 8, 16, 32, 48])
def test_a_climb_is_forecast_to_its_crossing(gap):
    steps = np.arange(0, 400, gap)
    values = 0.3 * 2 ** (steps / 150)
    truth = 150 * np.log2(1 / 0.3)
    at = steps[steps < truth - 5][-1]
    assert forecast(steps, values, at, 1.0, 200) == pytest.approx(truth)
    assert forecast(steps, values, at, 1.0, truth - at - 1) is None


def test_a_forecast_uses_nothing_later():
    steps = np.arange(0, 200, 8)
    values = 0.3 * 2 ** (steps / 100)
    changed = values.copy()
    changed[steps > 120] = 50.0
    assert forecast(steps, values, 120, 1.0, 100) == forecast(steps, changed, 120, 1.0, 100)


def test_no_forecast_without_growth_history_or_a_straight_line():
    steps = np.arange(0, 80, 8)
    assert forecast(steps, np.full(10, 0.9), 72, 1.0, 100) is None
    assert forecast(steps, np.linspace(0.9, 0.5, 10), 72, 1.0, 100) is None
    assert forecast(steps, np.full(10, 1.2), 72, 1.0, 100) is None
    assert forecast(steps[:3], [0.5, 0.6, 0.7], 16, 1.0, 100) is None
    assert forecast(steps, [0.5, 0.9, 0.4, 0.9, 0.4, 0.9, 0.3, 0.8, 0.3, 0.9], 72, 1.0, 100) is None
    assert forecast([], [], 10, 1.0, 100) is None
