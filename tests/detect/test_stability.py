"""S measured at checkpoints, and at every step where a stretch was zoomed."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from hnf_offline.detect.alarms import all_alarms, increase_alarms, stability_alarms
from hnf_offline.detect.gradients import gradient_alarms
from hnf_offline.table import Row, table

EMPTY_LOG = pl.DataFrame(schema={"step": pl.Int64, "loss": pl.Float64})
LENGTH = 600


def mixed(values, gap, stretches=(), quantity="hessian.stability_ratio"):
    """Sample values[step] at checkpoints, and at every step of the stretches as a zoom does."""
    saved = range(gap, LENGTH, gap)
    rows = [Row(step, "", "model", -1, quantity, float(values[step])) for step in saved]
    dense = {step for start, stop in stretches for step in range(start + 1, stop + 1)} - set(saved)
    rows += [
        Row(step, "", "model", -1, quantity, float(values[step]), source="zoom") for step in sorted(dense)
    ]
    return table(rows)


def alarms_of(profile):
    return [one for one in stability_alarms(profile, EMPTY_LOG, ()) if one.severity != "info"]


def climb(crossing, base=0.3, doubling=30):
    """Flat at `base`, then doubling until S is 1 just before the step `crossing`, and flat at 1.5."""
    steps = np.arange(LENGTH)
    rising = np.exp((steps - crossing + 0.5) * np.log(2) / doubling)
    return np.clip(rising, base, 1.5)


def test_the_crossing_is_known_to_the_step_where_it_was_zoomed():
    values = climb(205)
    truth = int(np.flatnonzero(values > 1)[0])
    assert truth == 205
    twelve = alarms_of(mixed(values, 12))
    sixty = alarms_of(mixed(values, 60))
    zoomed = stability_alarms(mixed(values, 60, [(120, 240)]), EMPTY_LOG, ())
    assert [(one.rule, one.known_at) for one in sixty] == [("edge", 240)]
    crossed = [one for one in zoomed if one.rule in {"edge", "edge-confirmed"}]
    assert crossed[0].known_at == truth
    assert abs(min(one.known_at for one in zoomed) - min(one.known_at for one in twelve)) <= 12


def test_a_fast_rise_is_an_edge_alarm_at_its_true_step_and_names_the_step():
    values = climb(205, base=0.3, doubling=2)
    (alarm,) = alarms_of(mixed(values, 60, [(180, 240)]))
    assert (alarm.rule, alarm.step, alarm.known_at) == ("edge", 205, 205)
    assert "at step 205" in alarm.text
    (late,) = alarms_of(mixed(values, 60))
    assert late.known_at == 240
    assert "at checkpoint 240" in late.text


@pytest.mark.parametrize("seed", range(40))
def test_what_a_zoom_says_does_not_depend_on_how_far_apart_checkpoints_are(seed):
    random = np.random.default_rng(seed)
    values = climb(int(random.integers(260, 500)), doubling=float(random.uniform(5, 40)))
    values = values * np.exp(0.03 * random.normal(size=LENGTH))
    stretch = (180, 540)
    found = {gap: alarms_of(mixed(values, gap, [stretch])) for gap in (12, 20, 60)}
    told = {gap: [(a.rule, a.known_at) for a in alarms if a.known_at <= 540] for gap, alarms in found.items()}
    assert told[12] == told[20] == told[60] != []


@pytest.mark.parametrize("seed", range(20))
def test_soon_after_a_zoom_has_begun_checkpoints_still_speak(seed):
    random = np.random.default_rng(seed)
    values = climb(int(random.integers(200, 500)), doubling=float(random.uniform(10, 120)))
    coarse = alarms_of(mixed(values, 8))
    first = coarse[0].known_at
    fine = alarms_of(mixed(values, 8, [(first - 16, first)]))
    assert fine[0].known_at <= first


@pytest.mark.parametrize(("gap", "noise"), [(12, 0.08), (60, 0.05)])
def test_noise_of_single_steps_is_not_forecast_as_growth(gap, noise):
    spurious = {"coarse": 0, "zoomed": 0, "as if all were checkpoints": 0}
    for seed in range(60):
        values = 0.72 * np.exp(noise * np.random.default_rng(seed).normal(size=LENGTH))
        profile = mixed(values, gap, [(240, 300), (480, 540)])
        spurious["coarse"] += bool(alarms_of(mixed(values, gap)))
        spurious["zoomed"] += bool(alarms_of(profile))
        naive = profile.with_columns(source=pl.lit("checkpoint"))
        spurious["as if all were checkpoints"] += bool(alarms_of(naive))
    assert spurious["as if all were checkpoints"] >= 30, "else nothing is tested here"
    assert spurious["zoomed"] <= spurious["coarse"] + 3


def test_hovering_at_the_edge_is_one_alarm_however_closely_looked_at():
    random = np.random.default_rng(3)
    values = np.full(LENGTH, 0.5)
    values[200:] = 1.0 + 0.3 * np.sin(np.arange(LENGTH - 200) * 2.1) + 0.02 * random.normal(size=LENGTH - 200)
    profile = mixed(values, 60, [(180, 300)])
    naive = profile.with_columns(source=pl.lit("checkpoint"))
    assert len(alarms_of(naive)) > 5
    (alarm,) = [one for one in alarms_of(profile) if one.known_at <= 300]
    assert 200 <= alarm.known_at < 210


def test_a_zoom_without_any_checkpoint_sees_the_crossing_from_its_first_steps_on():
    rows = [
        Row(step, "", "model", -1, "hessian.stability_ratio", value, source="zoom")
        for step, value in zip(range(141, 147), (0.6, 0.62, 0.7, 1.4, 3.0, 9.0), strict=True)
    ]
    (alarm,) = alarms_of(table(rows))
    assert (alarm.rule, alarm.known_at) == ("edge", 144)


def test_a_step_measured_twice_counts_as_the_checkpoint():
    values = np.full(LENGTH, 0.5)
    profile = pl.concat([
        mixed(values, 12),
        table([Row(120, "", "model", -1, "hessian.stability_ratio", 3.0, source="zoom", batch="a")]),
    ])
    assert alarms_of(profile) == []


def test_adams_lag_around_its_threshold_is_one_alarm_in_a_zoom_and_names_its_step():
    values = np.full(LENGTH, 1.0)
    values[205:240:2] = 2.6
    profile = mixed(values, 60, [(180, 240)], "adam.lag_rms")
    (alarm,) = gradient_alarms(profile, EMPTY_LOG)
    assert (alarm.rule, alarm.known_at) == ("lag", 205)
    assert "at step 205" in alarm.text


def test_windows_of_checkpoints_count_checkpoints():
    values = np.exp(np.arange(LENGTH) / 120.0)  # ten times in 276 steps: 23 checkpoints of 12 steps
    profile = mixed(values, 12, [(300, 420)], "hessian.lambda_max")
    assert increase_alarms(profile) == ()
    spread = mixed(values, 36, [(324, 432)], "hessian.lambda_max")
    assert increase_alarms(spread) == increase_alarms(mixed(values, 36, (), "hessian.lambda_max")) != ()


def test_nothing_of_a_zoom_is_known_before_it_happened():
    values = climb(205, doubling=40) * np.exp(0.05 * np.random.default_rng(1).normal(size=LENGTH))
    profile = mixed(values, 60, [(120, 300)])
    every = all_alarms(profile, EMPTY_LOG, ())
    for cut in range(130, 300, 7):
        known = all_alarms(profile.filter(pl.col("step") <= cut), EMPTY_LOG, ())
        assert known == tuple(one for one in every if one.known_at <= cut)
