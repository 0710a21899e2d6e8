from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from hnf_offline.relate.null import Signal, shift_test, turned
from hnf_offline.relate.rules import episodes

LENGTH, GAP = 1200, 8


def autocorrelated(random: np.random.Generator, n: int, rho: float = 0.97) -> np.ndarray:
    values = np.zeros(3 * n)
    shocks = random.normal(size=3 * n)
    for k in range(1, 3 * n):
        values[k] = rho * values[k - 1] + shocks[k]
    return values[2 * n :]


def independent_signals(random: np.random.Generator, count: int = 4) -> list[Signal]:
    steps = np.arange(0, LENGTH, GAP)
    result = []
    for _ in range(count):
        values = autocorrelated(random, steps.size)
        result.append(Signal(episodes(steps, values > np.quantile(values, 0.8)), steps, values))
    return result


def spikes_of(random: np.random.Generator) -> list[int]:
    times = np.cumsum(random.gamma(6, 100 / 6, size=40)).astype(int) - int(random.integers(0, 200))
    return [int(time) for time in times if 0 < time < LENGTH]


def test_p_values_of_independent_signals_are_uniform() -> None:
    smallest, randomised = [], []
    for seed in range(300):
        random = np.random.default_rng(seed)
        signals = independent_signals(random)
        test = shift_test(signals, spikes_of(random), first=0, last=LENGTH - 1, resolution=GAP)
        if test.n_tests:
            smallest.append(min(p for p in test.p_values if p is not None))
            best = test.observed.max()
            above, tied = (test.null > best + 1e-12).sum(), (np.abs(test.null - best) <= 1e-12).sum()
            # p has 1/(n+1) steps: spread over its own step, it must be uniform
            randomised.append((above + random.uniform() * (1 + tied)) / (test.n_shifts + 1))
    p = np.array(smallest)
    assert p.size >= 280
    for level in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5):
        assert (p <= level).mean() <= level + 2.6 * np.sqrt(level * (1 - level) / p.size)
    assert kstest(randomised, "uniform").pvalue > 0.01


def test_a_rule_that_falls_silent_after_a_spike_gains_nothing_from_it() -> None:
    """Turning its alarms would: they would land in aftershocks, where the rule itself never speaks."""
    afresh, turned_only = [], []
    steps = np.arange(0, LENGTH, GAP)
    for seed in range(120):
        random = np.random.default_rng(seed)
        onsets = spikes_of(random)
        values = autocorrelated(random, steps.size, 0.5)
        level = np.quantile(values, 0.8)

        def silenced(at: np.ndarray, of: np.ndarray) -> np.ndarray:
            started = episodes(at, of > level, apart=0)  # noqa: B023
            return np.array([s for s in started if not any(0 <= s - o <= 40 for o in onsets)], int)  # noqa: B023

        def turn(offset: int) -> np.ndarray:
            return silenced(*turned(steps, values, offset, 0, LENGTH - 1))  # noqa: B023

        alarms = silenced(steps, values)
        for signal, result in (
            (Signal(alarms, steps, values, turn), afresh),
            (Signal(alarms, steps, values), turned_only),
        ):
            p = shift_test([signal], onsets, first=0, last=LENGTH - 1, resolution=GAP).p_values[0]
            result.append(1.0 if p is None else p)
    assert np.mean(np.array(afresh) <= 0.1) <= 0.1 + 2.6 * np.sqrt(0.09 / 120)
    assert np.mean(np.array(turned_only) <= 0.1) > 0.2


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_relation_is_found_among_unrelated_signals(seed: int) -> None:
    random = np.random.default_rng(seed)
    onsets = np.cumsum(random.integers(80, 140, size=10))
    onsets = onsets[onsets < LENGTH]
    steps = np.arange(0, LENGTH, GAP)
    nearest = np.array([min((o - s for o in onsets if o > s), default=200) for s in steps])
    values = np.exp(-nearest / 30) + 0.02 * random.normal(size=steps.size)
    planted = Signal(episodes(steps, values > 0.5), steps, values)
    test = shift_test(
        [*independent_signals(random), planted], onsets.tolist(), first=0, last=LENGTH - 1, resolution=GAP
    )
    assert test.p_values[-1] is not None
    assert test.p_values[-1] <= 0.05
    assert min(p for p in test.p_values[:-1] if p is not None) > test.p_values[-1]


def test_more_signals_never_make_the_same_signal_more_significant() -> None:
    random = np.random.default_rng(5)
    signals, onsets = independent_signals(random, 6), spikes_of(random)
    alone = shift_test(signals[:1], onsets, first=0, last=LENGTH - 1, resolution=GAP).p_values[0]
    among = shift_test(signals, onsets, first=0, last=LENGTH - 1, resolution=GAP).p_values[0]
    assert alone is not None
    assert among is not None
    assert among >= alone


def test_few_checkpoints_have_a_floor() -> None:
    steps = np.arange(0, 300, 10)
    signal = Signal(np.array([150]), steps, np.where(steps == 150, 10.0, 0.0))
    test = shift_test([signal], [151], first=0, last=299, resolution=10)
    assert test.n_shifts < 30
    assert test.floor == pytest.approx(1 / (test.n_shifts + 1))
    assert test.p_values[0] is not None
    assert test.p_values[0] >= test.floor > 0.03


def test_nothing_to_test_gives_no_p() -> None:
    silent = Signal(np.empty(0, np.int64))
    spoken = Signal(np.array([50]))
    assert shift_test([silent], [100], first=0, last=500).p_values == (None,)
    assert shift_test([spoken], [], first=0, last=500).p_values == (None,)
    assert shift_test([spoken, silent], [100], first=0, last=500).p_values[1] is None
