"""The paired test of two runs: its closed form, its level under correlated noise, and a planted difference."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hnf_offline.detect.autocorrelation import ar1_paths, effective_rows, effective_rows_of_slow_waves
from hnf_offline.detect.paired import paired_test
from hnf_offline.quantities import loss_curve

STEPS = np.arange(1, 2001)


def noise(seed, rows=STEPS.size, phi=0.5, size=0.02):
    return size * ar1_paths(phi, rows, 1, seed)[0]


def power(floor=2.0, amplitude=4.0, exponent=0.5, steps=STEPS):
    return floor + amplitude * steps.astype(float) ** -exponent


def test_a_paired_t_of_independent_rows_is_that_of_scipy():
    a, b = np.random.default_rng(1).normal(size=(2, 50))
    assert loss_curve.paired_t(a, b, 50) == pytest.approx(stats.ttest_rel(a, b).statistic)


# correlated rows


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.8])
def test_effective_rows_are_those_of_an_ar1_process(phi):
    found = np.median([effective_rows(path) for path in ar1_paths(phi, 4000, 40, 3)])
    assert found == pytest.approx(4000 * (1 - phi) / (1 + phi), rel=0.2)
    assert effective_rows(np.ones(30)) == 30


@pytest.mark.parametrize(
    ("phi", "rows"), [(0.0, 60), (0.5, 60), (0.8, 200), (0.95, 100), (0.95, 400), (0.99, 200), (0.8, 800)]
)
def test_equal_runs_with_correlated_noise_seldom_differ(phi, rows):
    # 300 pairs: 5 % are 15, of which 26 is three deviations away. Too few independent rows are no test at all.
    steps = np.arange(rows)
    found = [paired_test(steps, 2 + path, np.full(rows, 2.0)) for path in ar1_paths(phi, rows, 300, 5)]
    assert sum(test is not None and test.p < 0.05 for test in found) <= 26
    assert sum(test is not None and not test.low <= 0 <= test.high for test in found) <= 26


def test_the_naive_paired_test_does_not_keep_its_level():
    paths = ar1_paths(0.8, 800, 300, 5)
    assert sum(stats.ttest_1samp(path[400:], 0).pvalue < 0.05 for path in paths) > 90


@pytest.mark.parametrize("seed", [6, 7])
def test_a_slow_wander_below_more_noise_seldom_passes_for_a_difference(seed):
    draw, rows = np.random.default_rng(seed + 2), np.arange(800)
    by_both = by_autocorrelations = 0
    for path in ar1_paths(0.95, 800, 300, seed):
        difference = path + draw.standard_normal(800)
        test = paired_test(rows, 2 + difference, np.full(800, 2.0))
        by_both += test is not None and test.p < 0.05
        half = difference[400:]
        free = effective_rows(half)
        score = loss_curve.paired_t(half, np.zeros(400), free)
        by_autocorrelations += 2 * stats.t.sf(abs(score), free - 1) < 0.05
    assert by_both <= 26 < 35 < by_autocorrelations  # the noise cuts the autocorrelations short


def test_rows_by_slow_waves_are_those_of_white_noise_and_of_an_ar1_process():
    for phi in (0.0, 0.8):
        drawn = [effective_rows_of_slow_waves(path) for path in ar1_paths(phi, 4000, 200, 3)]
        # n over a chi-square of six degrees of freedom over six, whose inverse has the mean 6 / 4
        assert np.mean(drawn) == pytest.approx(1.5 * 4000 * (1 - phi) / (1 + phi), rel=0.25)
    assert effective_rows_of_slow_waves(np.ones(30)) == 30
    wave = np.cos(np.pi * (np.arange(40) + 0.5) / 40)
    # one wave of six holds everything: n s^2 / (n / 2 / 6), s^2 = n / 2 / (n - 1)
    assert effective_rows_of_slow_waves(wave) == pytest.approx(40 / 39 * 6)


def test_the_paired_test_finds_a_planted_difference():
    shared, inside = power() + noise(1), 0
    for seed in range(2, 82, 2):
        test = paired_test(STEPS, shared + 0.03 + noise(seed), shared + noise(seed + 1))
        assert test is not None and test.p < 0.001
        inside += test.low < 0.03 < test.high
        assert (test.first, test.rows) == (1001, 1000)
    assert inside >= 35
    assert paired_test(STEPS, shared, shared) is None
    assert paired_test(STEPS[:10], shared[:10], shared[:10] + 1) is None


# parts of the loss
