"""Alarms of the stability ratio and of its headroom."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl

from hnf_offline.detect.alarms import (
    Rules,
    all_alarms,
    headroom_alarms,
    stability_alarms,
)
from hnf_offline.detect.spikes import find_spikes
from hnf_offline.synthetic import (
    bad_batch_run,
    hover_run,
    loss_with_spikes,
    lr_jump_run,
    relaxation_run,
)
from hnf_offline.table import Row, table

from .alarm_runs import EMPTY_LOG, profile, said


def rates(values):
    steps = np.arange(1, len(values) + 1)
    return pl.DataFrame({"step": steps, "loss": np.full(len(values), 2.0), "learning_rate": values})


def test_a_jump_past_one_is_an_edge_alarm_with_a_number_to_act_on():
    (alarm,) = stability_alarms(profile([0.5, 0.5, 0.5, 0.5, 0.5, 2.0]), EMPTY_LOG, ())
    assert (alarm.rule, alarm.severity, alarm.step, alarm.known_at) == ("edge", "danger", 48, 48)
    assert (alarm.value, alarm.threshold) == (2.0, 1.0)
    assert "for good, to at most 0.005 (it is 0.01, lr/S is 0.005)" in alarm.action
    (mild,) = stability_alarms(profile([0.5, 0.5, 0.5, 0.5, 0.5, 1.0004]), EMPTY_LOG, ())
    assert "to at most 0.007 (it is 0.01, lr/S is 0.01)" in mild.action  # the ratchet: lr/S alone is no cut
    assert "rose to 1.0004 at" in mild.text  # never "rose to 1"


def test_no_action_is_ever_for_a_while():
    climb = 0.3 * 2 ** (np.arange(30) * 8 / 80)
    for values in (climb, [0.5, 0.5, 0.5, 0.5, 0.5, 2.0]):
        for alarm in stability_alarms(profile(values), EMPTY_LOG, ()):
            if alarm.severity != "info":
                assert "for good" in alarm.action
                assert "next 100 steps" not in alarm.action
                number = float(alarm.action.split("at most ")[1].split(" ")[0])
                assert number < 0.01
                assert number <= 0.01 / alarm.value + 1e-4


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
