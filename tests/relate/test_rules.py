from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from hnf_offline.detect.alarms import all_alarms
from hnf_offline.relate.baselines import exponential_z, rolling_slope_t, rolling_spread, trailing_z
from hnf_offline.relate.rules import episodes, projected, ratio_to_baseline, rules, scored_range
from hnf_offline.table import table

from .planted import crossings, relaxation, rows


def test_episodes_merge_a_threshold_that_is_crossed_again_soon() -> None:
    steps = np.arange(0, 100, 8)
    above = np.isin(steps, [16, 24, 40, 80])
    assert episodes(steps, above).tolist() == [16, 80]


def test_trailing_z_by_hand_and_without_looking_ahead() -> None:
    values = np.random.default_rng(0).normal(size=300)
    z = trailing_z(values, window=50)
    past = values[150:200]
    assert z[200] == pytest.approx((values[200] - past.mean()) / past.std())
    assert np.isnan(z[:16]).all()
    changed = values.copy()
    changed[201:] += 100
    np.testing.assert_array_equal(trailing_z(changed, window=50)[:201], z[:201])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_does_not_blind_the_rows_after_it(bad: float) -> None:
    values = np.random.default_rng(1).normal(size=200)
    values[100] = bad
    values[150] = 8.0
    z, zclip = trailing_z(values), exponential_z(values)
    assert z[150] > 5
    assert zclip[150] > 2.5
    assert np.isnan(z[100]) == np.isnan(bad)


def test_slope_and_spread_see_what_they_are_named_after() -> None:
    noise = 0.1 * np.random.default_rng(2).normal(size=200)
    assert np.nanmax(np.abs(rolling_slope_t(noise))) < 8
    assert rolling_slope_t(noise + np.arange(200))[-1] > 20
    assert rolling_spread(np.concatenate([noise, 5 * noise]))[-1] > 3 * rolling_spread(noise)[-1]


def test_projection_of_an_exponential_is_exact() -> None:
    steps = np.arange(0, 80, 8)
    values = 0.1 * np.exp(steps / 40)
    np.testing.assert_allclose(projected(steps, values)[1:], 0.1 * np.exp((steps[1:] + 12) / 40))


def test_ratio_to_baseline_is_causal() -> None:
    ratio = ratio_to_baseline(np.array([1.0, 1.0, 2.0, 3.0, 100.0]))
    assert np.isnan(ratio[:3]).all()
    assert ratio[3] == 3.0
    assert ratio[4] == pytest.approx(100 / 1.5)


def test_every_rule_has_a_name_a_sentence_and_speaks_only_where_it_could() -> None:
    run = relaxation()
    norms = table([
        *rows("adam.lag_rms", [8, 16], [1.0, 3.0]),
        *rows("hessian.gradient_direction", [8, 16], [0.2, 0.9]),
        *rows("hessian.stability_ratio", range(8, 80, 8), [0.1] * 8 + [0.5], "layers.0", 1),
    ])
    profile = pl.concat([run.profile, norms])
    found = rules(profile, run.log, run.spikes, all_alarms(run.profile, run.log, run.spikes), run.gap)
    names = [rule.name for rule in found]
    assert len({(rule.name, rule.layer) for rule in found}) == len(found)
    for wanted in (
        "stability alarm",
        "S > 1",
        "gradient direction > 0.8",
        "RMS_t > 2.3",
        "gradient norm z > 2",
        "gradient norm z > 3",
        "gradient norm ZClip z > 2.5",
        "loss spread z > 3",
        "loss slope t > 3",
        "always alarm",
        "layer S > 2 x its baseline",
    ):
        assert wanted in names
    for rule in found:
        assert rule.sentence
        assert rule.values.size in {0, rule.at.size}
        if rule.values.size and rule.name != "stability alarm":
            assert np.isin(rule.alarms, rule.at).all()
    by_name = {rule.name: rule for rule in found}
    assert by_name["layer S > 2 x its baseline"].alarms.tolist() == [72]
    assert by_name["layer S > 2 x its baseline"].layer == "layers.0"
    assert by_name["RMS_t > 2.3"].alarms.tolist() == [16]
    assert by_name["RMS_t > 2.3"].baseline
    assert not by_name["stability alarm"].baseline
    assert by_name["stability alarm"].resolution == 8
    assert by_name["gradient norm z > 2"].resolution == 1


def test_a_log_of_every_tenth_step_cannot_tell_to_the_step() -> None:
    run = relaxation()
    sparse = run.log.filter(pl.col("step") % 10 == 0)
    found = {rule.name: rule for rule in rules(run.profile, sparse, run.spikes, (), run.gap)}
    assert found["gradient norm z > 2"].resolution == 10


def test_all_rules_are_scored_over_the_profiled_range() -> None:
    run = relaxation(length=400)
    short = run.profile.filter(pl.col("step").is_between(104, 200))
    assert scored_range(short, run.log, 8) == (104, 207)
    assert scored_range(short.clear(), run.log, None) == (1, 400)
    assert scored_range(short.clear(), None, None) == (0, 0)


def test_the_turned_machine_unturned_is_the_machine() -> None:
    run = relaxation(3)
    alarms = all_alarms(run.profile, run.log, run.spikes)
    found = {rule.name: rule for rule in rules(run.profile, run.log, run.spikes, alarms, run.gap)}
    rule = found["stability alarm"]
    assert rule.turn is not None
    first, last = scored_range(run.profile, run.log, run.gap)
    assert rule.turn(0).tolist() == rule.alarms.tolist()
    assert rule.turn(last - first + 1).tolist() == rule.alarms.tolist()
    assert rule.turn(200).tolist() != rule.alarms.tolist()
    assert crossings(rule.at, rule.values)
