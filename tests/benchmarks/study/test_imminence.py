"""The alarm of an instability under way: what raises it, what does not, and that it sees no future."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from benchmarks.study.imminence import CHOSEN, imminent, surge_scores
from hnf_offline.findings import Spike


def profile(ratios: dict[int, float], rates: dict[int, float] | None = None) -> pl.DataFrame:
    rows = [(step, "hessian.stability_ratio", one) for step, one in ratios.items()]
    rows += [(step, "optimizer.learning_rate", one) for step, one in (rates or {}).items()]
    return pl.DataFrame(
        [(step, "", "model", -1, name, one, None, None, True, "", "checkpoint") for step, name, one in rows],
        schema={
            "step": pl.Int64,
            "layer": pl.String,
            "kind": pl.String,
            "depth": pl.Int32,
            "quantity": pl.String,
            "value": pl.Float64,
            "low": pl.Float64,
            "high": pl.Float64,
            "certified": pl.Boolean,
            "batch": pl.String,
            "source": pl.String,
        },
        orient="row",
    )


def log(norms: np.ndarray, rates: np.ndarray | None = None) -> pl.DataFrame:
    steps = np.arange(1, norms.size + 1)
    rate = np.full(norms.size, 1e-2) if rates is None else rates
    return pl.DataFrame({
        "step": steps,
        "loss": np.ones(norms.size),
        "grad_norm": norms,
        "learning_rate": rate,
    })


def spike(onset: int) -> Spike:
    return Spike(1, onset, onset + 1, onset + 5, 1.0, 2.0, 1.0, 9.0, "spike", True, 5, 0.0, False)


def quiet(size: int = 400) -> np.ndarray:
    return 1 + 0.01 * np.sin(np.arange(size))


def level(value: float, size: int = 400) -> dict[int, float]:
    return dict.fromkeys(range(100, size, 8), value)


def test_a_surge_counts_at_the_edge_only():
    norms = quiet()
    norms[299] = 1.2  # step 300
    assert imminent(profile(level(1.0)), log(norms), []) == [(300, "surge")]
    assert imminent(profile(level(0.3)), log(norms), []) == []
    assert imminent(profile(level(1.0)), log(quiet()), []) == []
    assert imminent(profile({304: 1.0}), log(norms), []) == [], "S was not known yet"


def test_without_curvature_nothing_is_said():
    norms = quiet()
    norms[299] = 5.0
    assert imminent(profile({}), log(norms), []) == []


def test_a_slow_climb_to_the_edge_is_no_alarm_and_a_fast_one_is():
    slow = {step: 0.4 * np.exp(0.008 * (step - 100)) for step in range(100, 240, 8)}
    assert max(slow.values()) > 1 and imminent(profile(slow), log(quiet()), []) == []
    fast = {step: 0.1 * np.exp(0.04 * (step - 100)) for step in range(100, 172, 8)}
    (step, name), *others = imminent(profile(fast), log(quiet()), [])
    assert name == "rush" and not others and 0.3 < fast[step] < 1, "before S is there"
    assert fast[step] * np.exp(0.04 * CHOSEN.ahead) > 1 >= fast[step - 8] * np.exp(0.04 * CHOSEN.ahead)


def test_a_raised_rate_is_no_rush_but_past_half_the_headroom_an_alarm_of_its_own():
    def raised(to: float) -> list[tuple[int, str]]:
        ratios = {step: 0.05 * (to if step > 200 else 1) for step in range(100, 300, 8)}
        rates = {step: 1e-2 * (to if step >= 200 else 1) for step in ratios}
        return imminent(
            profile(ratios, rates), log(quiet(), np.where(np.arange(1, 401) > 200, 1e-2 * to, 1e-2)), []
        )

    assert raised(8.0) == [], "S stays below a half"
    assert raised(12.0) == [(201, "headroom")] and raised(30.0)[0] == (201, "headroom")


def test_far_beyond_the_edge_is_an_alarm_however_it_came_about():
    assert imminent(profile({100: 2.5, 108: 0.5}), log(quiet()), []) == [(100, "beyond")]
    assert imminent(profile({100: 1.9}), log(quiet()), []) == []


def test_an_alarm_stands_until_a_spike_or_eighty_steps():
    norms = quiet()
    norms[[199, 239, 289]] = 1.5, 2.5, 4.0
    edge = profile(level(1.0))
    assert [step for step, _ in imminent(edge, log(norms), [])] == [200, 290]
    assert [step for step, _ in imminent(edge, log(norms), [spike(220)])] == [200, 240]
    assert [step for step, _ in imminent(edge, log(norms), [spike(230)])] == [200, 290], (
        "240 is its aftershock"
    )


def test_scores_use_rows_before_alone_and_leave_out_what_is_not_finite():
    norms = quiet(120)
    norms[60] = np.inf
    steps, scores = surge_scores(log(norms), CHOSEN)
    assert 61 not in steps and np.isnan(scores[: CHOSEN.warm_up]).all()
    later = norms.copy()
    later[100:] = 50.0
    again = surge_scores(log(later), CHOSEN)[1]
    assert np.array_equal(scores[:99], again[:99], equal_nan=True)
    past = norms[:80][np.isfinite(norms[:80])]
    weights = CHOSEN.decay ** np.arange(past.size)[::-1]
    weights /= weights.sum()
    mean = float(weights @ past)
    variance = float(weights @ (past - mean) ** 2) / (1 - float(weights @ weights))
    row = int(np.flatnonzero(steps == 81)[0])
    assert scores[row] == pytest.approx((norms[80] - mean) / variance**0.5)


@pytest.mark.parametrize("seed", range(4))
def test_what_comes_later_changes_no_alarm(seed):
    generator = np.random.default_rng(seed)
    norms = quiet() + generator.exponential(0.05, 400)
    ratios = {
        step: float(one)
        for step, one in zip(range(100, 400, 8), generator.lognormal(0, 0.5, 38), strict=True)
    }
    spikes = [spike(180), spike(300)]
    every = imminent(profile(ratios), log(norms), spikes)
    assert len(every) >= 3
    for cut in (150, 200, 290, 350):
        known = {step: one for step, one in ratios.items() if step <= cut}
        seen = imminent(profile(known), log(norms[:cut]), [one for one in spikes if one.onset <= cut])
        assert seen == [one for one in every if one[0] <= cut]
