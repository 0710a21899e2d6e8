from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnf_offline.detect.alarms import (
    Rules,
    all_alarms,
    band_alarms,
    gradient_alarms,
    headroom_alarms,
    increase_alarms,
    nonfinite_alarms,
    overflow_alarms,
    stability_alarms,
)
from hnf_offline.detect.spikes import find_spikes
from hnf_offline.synthetic import (
    bad_batch_run,
    hover_run,
    loss_with_spikes,
    lr_jump_run,
    null_run,
    relaxation_run,
)
from hnf_offline.table import Row, table

EMPTY_LOG = pl.DataFrame(schema={"step": pl.Int64, "loss": pl.Float64})


def profile(values, quantity="hessian.stability_ratio", layer="", gap=8, first=8, rate=1e-2):
    rows = []
    for number, value in enumerate(values):
        step = first + gap * number
        rows.append(Row(step, layer, "model", -1, quantity, float(value)))
        if quantity == "hessian.stability_ratio":
            rows.append(Row(step, layer, "model", -1, "optimizer.learning_rate", rate))
    return table(rows)


def said(alarms, *severities):
    return [(a.rule, a.known_at) for a in alarms if not severities or a.severity in severities]


def rates(values):
    steps = np.arange(1, len(values) + 1)
    return pl.DataFrame({"step": steps, "loss": np.full(len(values), 2.0), "learning_rate": values})


def test_a_jump_past_one_is_an_edge_alarm_with_a_number_to_act_on():
    (alarm,) = stability_alarms(profile([0.5, 0.5, 0.5, 0.5, 0.5, 2.0]), EMPTY_LOG, ())
    assert (alarm.rule, alarm.severity, alarm.step, alarm.known_at) == ("edge", "danger", 48, 48)
    assert (alarm.value, alarm.threshold) == (2.0, 1.0)
    assert "0.004" in alarm.action  # 0.8 / 2.0 of the saved 0.01


def test_a_climb_is_forecast_once_and_its_crossing_is_only_a_note():
    climb = 0.3 * 2 ** (np.arange(30) * 8 / 80)
    alarms = stability_alarms(profile(climb), EMPTY_LOG, ())
    assert [a.rule for a in alarms] == ["forecast", "edge-confirmed"]
    assert alarms[0].severity == "warning"
    assert alarms[1].severity == "info"
    crossing = 8 + 80 * np.log2(1 / 0.3)
    assert 0 < crossing - alarms[0].known_at <= 24
    assert alarms[0].value > 0.6


def test_hovering_at_the_edge_alarms_once_until_it_is_armed_again_below_off():
    hover = [0.5] * 4 + [1.2, 0.9, 1.1, 0.85, 1.3, 0.95, 1.1]
    assert said(stability_alarms(profile(hover), EMPTY_LOG, ())) == [("edge", 40)]
    again = [*hover, 0.79, 1.2]
    assert said(stability_alarms(profile(again), EMPTY_LOG, ())) == [("edge", 40), ("edge", 104)]


def test_a_run_first_seen_above_the_edge_gets_a_note_and_no_alarm():
    alarms = stability_alarms(profile([1.5, 1.4, 1.6, 1.2]), EMPTY_LOG, ())
    assert said(alarms) == [("edge-from-start", 8)]
    assert alarms[0].severity == "info"


def test_an_aftershock_does_not_alarm_and_a_spike_disarms():
    log, _ = loss_with_spikes(200, [50], seed=0)
    spikes = find_spikes(log)
    values = [0.5] * 6 + [3.0, 2.0, 1.5, 1.2, 0.9, 0.5, 0.5, 0.5, 2.0]
    alarms = stability_alarms(profile(values), log, spikes)
    assert said(alarms) == [("edge", 120)]
    no_refractory = dataclasses.replace(Rules(), refractory=0)
    assert said(stability_alarms(profile(values), log, spikes, no_refractory)) == [("edge", 120)]


def test_a_spike_to_come_does_not_disarm():
    log, _ = loss_with_spikes(200, [50], seed=0)
    values = [0.5, 0.5, 0.5, 0.5, 0.5, 1.5]  # step 48, two steps before the onset
    assert said(stability_alarms(profile(values), log, find_spikes(log))) == [("edge", 48)]


def test_thresholds_can_be_changed():
    values = [0.3] * 5 + [0.7]
    assert stability_alarms(profile(values), EMPTY_LOG, ()) == ()
    assert said(stability_alarms(profile(values), EMPTY_LOG, (), Rules(on=0.6, off=0.5))) == [("edge", 48)]


def test_sparse_checkpoints_forecast_from_two():
    values = 0.3 * 2 ** (np.arange(12) * 40 / 100)
    alarms = stability_alarms(profile(values, gap=40, first=40), EMPTY_LOG, ())
    crossing = 40 + 100 * np.log2(1 / 0.3)
    assert alarms[0].rule == "forecast"
    assert 0 < crossing - alarms[0].known_at <= 80


def test_every_planted_climb_is_announced_before_its_spike():
    for seed in range(5):
        run = relaxation_run(seed=seed, gap=8, lead=16)
        alarms = stability_alarms(run.profile, run.log, find_spikes(run.log))
        loud = [a.known_at for a in alarms if a.severity != "info"]
        for onset in run.truth.onsets:
            assert any(onset - 60 <= known < onset for known in loud)
        assert len(loud) <= len(run.truth.onsets) + 1


def test_a_bad_batch_has_no_precursor():
    run = bad_batch_run()
    assert [a for a in all_alarms(run.profile, run.log, find_spikes(run.log)) if a.severity != "info"] == []


def test_the_quiet_twin_at_the_edge_alarms_at_most_once():
    for seed in range(5):
        run = hover_run(seed=seed)
        alarms = all_alarms(run.profile, run.log, find_spikes(run.log))
        assert len([a for a in alarms if a.severity != "info"]) == 1


def test_a_healthy_run_has_no_warning():
    for seed in range(5):
        log, _ = loss_with_spikes(400, [], seed)
        healthy = profile(0.4 * np.exp(0.05 * np.random.default_rng(seed).standard_normal(40)), gap=10)
        assert [a for a in all_alarms(healthy, log, ()) if a.severity != "info"] == []


# --- headroom ---


def test_a_raised_learning_rate_is_told_with_its_numbers():
    run = lr_jump_run(ratio=0.59, factor=10)
    (alarm,) = headroom_alarms(run.profile, run.log)
    assert (alarm.rule, alarm.severity, alarm.known_at) == ("headroom", "danger", 150)
    assert alarm.known_at < run.truth.onsets[0]
    for number in ("10x", "0.05", "step 150", "checkpoint 140", "1.7", "0.0085"):
        assert number in alarm.text


def test_a_raise_within_the_headroom_is_silent():
    run = lr_jump_run(ratio=0.08, factor=10)
    assert headroom_alarms(run.profile, run.log) == ()


def test_warm_up_from_tiny_rates_is_silent_while_the_ratio_stays_below_one():
    warm_up = np.minimum(np.arange(1, 301) / 100, 1.0) * 1e-3
    steps = np.arange(10, 301, 10)
    saved = np.minimum((steps + 1) / 100, 1.0) * 1e-3
    rows = []
    for step, rate in zip(steps.tolist(), saved.tolist(), strict=True):
        rows.append(Row(step, "", "model", -1, "hessian.stability_ratio", 0.4 * rate / 1e-3))
        rows.append(Row(step, "", "model", -1, "optimizer.learning_rate", rate))
    assert headroom_alarms(table(rows), rates(warm_up)) == ()
    rows.append(Row(0, "", "model", -1, "hessian.stability_ratio", 0.0))
    rows.append(Row(0, "", "model", -1, "optimizer.learning_rate", 0.0))
    assert headroom_alarms(table(rows), rates(warm_up)) == ()


def test_only_the_last_checkpoint_before_the_step_counts():
    values = np.full(100, 1e-3)
    values[60:] = 3e-3
    calm = profile([0.5] * 5 + [0.2], gap=10, first=10, rate=1e-3)  # the last, at step 60, has room for 5x
    assert headroom_alarms(calm, rates(values)) == ()
    tight = profile([0.2] * 5 + [0.5], gap=10, first=10, rate=1e-3)
    (alarm,) = headroom_alarms(tight, rates(values))
    assert alarm.known_at == 61
    assert "checkpoint 60" in alarm.text


def test_without_a_saved_rate_the_log_says_it():
    run = lr_jump_run()
    bare = run.profile.filter(pl.col("quantity") == "hessian.stability_ratio")
    (alarm,) = headroom_alarms(bare, run.log)
    assert alarm.known_at == 150


def test_a_saved_rate_that_disagrees_with_a_constant_log_is_no_raise():
    assert headroom_alarms(profile([0.9] * 10, rate=1e-3), rates(np.full(90, 4e-3))) == ()


def test_a_run_that_lacks_rates_or_ratios_has_no_headroom_alarm():
    assert headroom_alarms(table(), EMPTY_LOG) == ()
    assert headroom_alarms(profile([0.5] * 3), EMPTY_LOG) == ()


# --- single quantities ---


def test_adam_lag_is_a_warning_for_the_model_and_a_note_for_a_layer():
    values = [1, 1, 2.5, 3, 1, 2.4]
    whole = gradient_alarms(profile(values, "adam.lag_rms"), EMPTY_LOG)
    assert [(a.known_at, a.severity) for a in whole] == [(24, "warning"), (48, "warning")]
    layer = gradient_alarms(profile(values, "adam.lag_rms", layer="head"), EMPTY_LOG)
    assert {a.severity for a in layer} == {"info"}


def test_gradient_norms_are_notes_and_silent_where_the_band_does_not_fit():
    norms = np.full(100, 1.0)
    norms[50:53] = 20
    log = pl.DataFrame({"step": np.arange(100), "loss": np.ones(100), "grad_norm": norms})
    assert said(gradient_alarms(table(), log), "info") == [("norm-high", 50), ("norm-critical", 50)]
    assert gradient_alarms(table(), log.with_columns(pl.col("grad_norm") + 30)) == ()


@pytest.mark.parametrize("value, severities", [(500, []), (2e3, ["warning"]), (2e4, ["warning", "danger"])])
def test_attention_logits_have_bands(value, severities):
    alarms = band_alarms(profile([10, 20, value, value], "attention.logit_max", layer="attn.softmax"))
    assert [a.severity for a in alarms] == severities
    assert all(a.known_at == 24 for a in alarms)


def test_component_estimates_are_notes_in_the_bands_of_their_source():
    alarms = band_alarms(profile([2, 7, 7, 10, 2, 7], "proxy.softmax_log10", layer="attn.softmax"))
    assert [(a.rule, a.known_at, a.severity) for a in alarms] == [
        ("band-warning", 16, "info"),
        ("band-warning", 48, "info"),
        ("band-danger", 32, "info"),
    ]


def test_ten_times_within_ten_checkpoints_is_a_rapid_increase_once():
    values = np.concatenate([np.full(20, 3.0), np.full(20, 40.0)])
    (alarm,) = increase_alarms(profile(values, "hessian.lambda_max"))
    assert (alarm.rule, alarm.known_at, alarm.severity) == ("rapid-increase", 8 + 8 * 20, "warning")
    assert increase_alarms(profile(values, "hessian.lambda_max", layer="head"))[0].severity == "info"
    assert increase_alarms(profile(np.geomspace(1, 100, 40), "hessian.lambda_max")) == ()
    assert increase_alarms(profile([1.0] * 12 + [2.5], "proxy.norm_log10"))[0].severity == "info"
    back = [30.0] * 10 + [1.0] * 10 + [30.0] * 5  # a return to an old level is not a new high
    assert increase_alarms(profile(back, "hessian.lambda_max")) == ()


def test_growth_towards_overflow_is_forecast():
    values = 10.0 ** (np.arange(40) * 0.35)
    alarms = overflow_alarms(profile(values, "hessian.lambda_max"))
    assert said(alarms) == [("overflow-forecast", alarms[0].known_at)]
    reached = np.log10(values[(alarms[0].known_at - 8) // 8]) + 100 * 0.35 / 8
    assert reached > 15 >= reached - 0.35 - 1e-9
    assert overflow_alarms(profile(values[:19], "hessian.lambda_max")) == ()
    assert overflow_alarms(profile(np.geomspace(1, 10, 40), "hessian.lambda_max")) == ()


def test_values_that_are_not_finite_name_the_first_layer_and_count_the_rest():
    rows = [
        Row(step, layer, "mlp_up", depth, "gradient.norm", float("nan") if step >= 30 and depth > 0 else 1.0)
        for step in (10, 20, 30, 40)
        for depth, layer in enumerate(("a", "b", "c"))
    ]
    (alarm,) = nonfinite_alarms(table(rows), EMPTY_LOG)
    assert (alarm.layer, alarm.known_at, alarm.severity) == ("b", 30, "danger")
    assert "1 more" in alarm.text
    (weights,) = nonfinite_alarms(profile([0, 0, 0.25], "weight.nonfinite", layer="head"), EMPTY_LOG)
    assert (weights.known_at, weights.layer) == (24, "head")
    (estimate,) = nonfinite_alarms(profile([1, np.inf], "proxy.cross_entropy_log10"), EMPTY_LOG)
    assert estimate.severity == "info"


def test_skipped_steps_of_scaled_training_are_no_alarm_but_three_in_a_row_are():
    norms = np.ones(50)
    norms[[3, 10, 11]] = np.inf
    log = pl.DataFrame({"step": np.arange(50), "loss": np.ones(50), "grad_norm": norms})
    assert nonfinite_alarms(table(), log) == ()
    norms[30:] = np.nan
    log = log.with_columns(pl.Series("grad_norm", norms))
    assert said(nonfinite_alarms(table(), log)) == [("nonfinite", 32)]


# --- all of them ---


def test_nothing_measured_and_nothing_logged_says_nothing():
    assert all_alarms(table(), EMPTY_LOG, ()) == ()


def test_the_order_is_that_of_knowing():
    run = lr_jump_run()
    alarms = all_alarms(run.profile, run.log, find_spikes(run.log))
    known = [a.known_at for a in alarms]
    assert known == sorted(known)
    assert alarms[0].severity == "danger"


def mixed_run(seed):
    """A run with everything that can alarm, at random places."""
    random = np.random.default_rng(seed)
    maker = (relaxation_run, null_run, lr_jump_run, hover_run, bad_batch_run)[seed % 5]
    run = maker(seed=seed)
    steps = run.profile["step"].unique().sort().to_list()
    rows = []
    for number, step in enumerate(steps):
        rows.append(Row(step, "", "model", -1, "adam.lag_rms", float(np.exp(0.6 * random.standard_normal()))))
        jump = 2.0 if number > len(steps) // 2 else 0.0
        rows.append(Row(step, "", "model", -1, "hessian.lambda_max", float(10 ** (0.05 * number + jump))))
        rows.append(
            Row(step, "a.softmax", "softmax", 1, "attention.logit_max", float(10 ** random.uniform(1, 4.5)))
        )
        if random.random() < 0.05:
            rows.append(Row(step, "head", "head", 2, "gradient.norm", float("nan")))
    log = run.log.with_columns(
        pl.Series(
            "grad_norm",
            np.where(random.random(run.log.height) < 0.1, np.nan, 4 * random.random(run.log.height)),
        )
    )
    kept = run.profile.filter(~((pl.col("layer") == "head") & (pl.col("quantity") == "gradient.norm")))
    return pl.concat([kept, table(rows)]).sort(["step", "depth"]), log


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
def test_no_alarm_ever_uses_later_data(seed, share):
    measured, log = mixed_run(seed)
    cut = int(share * log["step"].max())
    early_log, early = log.filter(pl.col("step") <= cut), measured.filter(pl.col("step") <= cut)
    then = all_alarms(early, early_log, find_spikes(early_log))
    now = all_alarms(measured, log, find_spikes(log))
    assert repr(then) == repr(tuple(alarm for alarm in now if alarm.known_at <= cut))  # NaN is not itself
    assert all(alarm.step <= alarm.known_at for alarm in now)
