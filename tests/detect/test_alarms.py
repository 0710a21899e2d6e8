"""Alarms of single quantities, and of all together."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnf_offline.detect.alarms import (
    all_alarms,
    band_alarms,
    gradient_alarms,
    increase_alarms,
    nonfinite_alarms,
    overflow_alarms,
)
from hnf_offline.detect.spikes import find_spikes
from hnf_offline.synthetic import (
    bad_batch_run,
    hover_run,
    lr_jump_run,
    null_run,
    relaxation_run,
)
from hnf_offline.table import Row, table

from .alarm_runs import EMPTY_LOG, profile, said


def test_adam_lag_is_a_warning_for_the_model_and_a_note_for_a_layer():
    values = [1, 1, 2.5, 3, 1, 2.4]
    whole = gradient_alarms(profile(values, "adam.lag_rms"), EMPTY_LOG)
    assert [(a.known_at, a.severity) for a in whole] == [(24, "warning"), (48, "warning")]
    layer = gradient_alarms(profile(values, "adam.lag_rms", layer="head"), EMPTY_LOG)
    assert {a.severity for a in layer} == {"info"}


def lag(values_by_layer):
    return pl.concat([profile(values, "adam.lag_rms", layer) for layer, values in values_by_layer.items()])


def test_lag_of_many_layers_at_one_checkpoint_is_one_alarm_that_names_the_worst():
    layers = {f"blocks.{k}": [1, 1, 2.5 + k / 10, 1] for k in range(11)}
    (alarm,) = gradient_alarms(lag({"": [1, 1, 3.0, 1], **layers}), EMPTY_LOG)
    assert (alarm.layer, alarm.value, alarm.severity, alarm.known_at) == ("", 3.0, "warning", 24)
    assert "3.5 in blocks.10 and 10 more" in alarm.text
    (alarm,) = gradient_alarms(lag(layers), EMPTY_LOG)
    assert (alarm.layer, alarm.value, alarm.severity) == ("blocks.10", 3.5, "info")
    assert "and 10 more layers" in alarm.text
    later = {"a": [1, 3, 3, 3], "b": [1, 1, 3, 3]}
    assert [(a.layer, a.known_at) for a in gradient_alarms(lag(later), EMPTY_LOG)] == [("a", 16), ("b", 24)]


def norm_log(norms):
    return pl.DataFrame({"step": np.arange(len(norms)), "loss": np.ones(len(norms)), "grad_norm": norms})


def test_gradient_norms_are_notes_one_an_episode():
    norms = np.full(300, 1.0)
    norms[50:53] = 20
    norms[60:90:3] = 7  # still the same episode: never below the band for 50 rows
    norms[139] = 30  # 51 rows after the last of them
    norms[188] = 8  # 48 rows in between
    assert said(gradient_alarms(table(), norm_log(norms)), "info") == [
        ("norm-critical", 50),
        ("norm-critical", 139),
    ]
    norms[50] = 6
    alarms = gradient_alarms(table(), norm_log(norms))
    assert said(alarms, "info")[0] == ("norm-high", 50)
    assert "6 at step 50, normally 1:" in alarms[0].text
    assert len(alarms) == 2


@pytest.mark.parametrize("usual", [8, 31])
def test_a_norm_band_that_the_run_normally_exceeds_says_nothing(usual):
    norms = usual * np.exp(0.3 * np.random.default_rng(0).standard_normal(300))
    norms[200] = 100
    assert gradient_alarms(table(), norm_log(norms)) == ()


def test_steps_without_a_norm_do_not_end_an_episode():
    norms = np.full(300, 1.0)
    norms[[50, 150]] = 7
    assert len(gradient_alarms(table(), norm_log(norms))) == 2
    norms[60:140] = np.nan
    assert len(gradient_alarms(table(), norm_log(norms))) == 1


@pytest.mark.parametrize("value, severities", [(500, []), (2e3, ["warning"]), (2e4, ["danger"])])
def test_attention_logits_have_bands(value, severities):
    alarms = band_alarms(profile([10, 20, value, value], "attention.logit_max", layer="attn.softmax"))
    assert [a.severity for a in alarms] == severities
    assert all(a.known_at == 24 for a in alarms)


def test_component_estimates_are_notes_in_the_bands_of_their_source():
    alarms = band_alarms(profile([2, 7, 7, 10, 2, 7], "proxy.softmax_log10", layer="attn.softmax"))
    assert [(a.rule, a.known_at, a.severity) for a in alarms] == [
        ("band-warning", 16, "info"),
        ("band-danger", 32, "info"),
        ("band-warning", 48, "info"),
    ]
    assert (alarms[1].value, alarms[1].threshold) == (10, 9)
    assert "danger band: 1e10.0 at checkpoint 32" in alarms[1].text


def test_danger_implies_warning_and_layers_are_told_together():
    rows = [profile([2, 10 + k], "proxy.norm_log10", layer=f"norm{k}") for k in range(3)]
    rows.append(profile([2, 7], "proxy.norm_log10", layer="last"))
    (alarm,) = band_alarms(pl.concat(rows))
    assert (alarm.rule, alarm.layer, alarm.value, alarm.threshold) == ("band-danger", "norm2", 12, 9)
    assert "and 3 more layers" in alarm.text


def test_an_estimate_that_trembles_at_its_band_is_told_once():
    trembling = [2, 6.1, 5.9, 6.2, 5.8, 6.1, 5.4, 6.1]
    assert said(band_alarms(profile(trembling, "proxy.norm_log10"))) == [
        ("band-warning", 16),
        ("band-warning", 64),
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


@pytest.mark.parametrize(
    "quantity",
    [
        "hessian.lambda_min",
        "hessian.update_direction",
        "hessian.gradient_direction",
        "gradient.norm",
        "residual.rms",
    ],
)
def test_only_curvatures_and_their_estimates_increase_rapidly(quantity):
    values = np.concatenate([np.full(20, 3.0), np.full(20, 40.0)])
    assert increase_alarms(profile(values, quantity)) == ()
    (ratio,) = increase_alarms(profile(values))
    assert (ratio.quantity, ratio.severity) == ("hessian.stability_ratio", "info")


def test_growth_is_told_in_words_that_can_be_read():
    (estimate,) = increase_alarms(profile([1.3] * 15 + [16.7], "proxy.cross_entropy_log10"))
    assert "grew by 15.4 decades within 10 checkpoints, 20 to 1e16.7" in estimate.text
    (raw,) = increase_alarms(profile([3.0] * 15 + [39.0], "hessian.lambda_max"))
    assert "grew 13x within 10 checkpoints, 3 to 39" in raw.text
    assert raw.threshold == pytest.approx(30)


def test_layers_that_rise_together_are_one_alarm_that_names_the_one_that_grew_most():
    rows = [profile([1.0] * 12 + [20.0 + k], "hessian.lambda_max", layer=f"blocks.{k}") for k in range(4)]
    (alarm,) = increase_alarms(pl.concat(rows))
    assert (alarm.layer, alarm.severity) == ("blocks.3", "info")
    assert "(and 3 more layers)" in alarm.text
    (alarm,) = increase_alarms(pl.concat([*rows, profile([1.0] * 12 + [15.0], "hessian.lambda_max")]))
    assert (alarm.layer, alarm.severity) == ("", "warning")
    assert "15x" in alarm.text
    assert "(most in blocks.3, and in 3 more layers)" in alarm.text


def test_a_rise_that_goes_on_is_one_episode():
    steep = np.concatenate([np.full(12, 1.0), np.repeat(10.0 ** np.arange(1.1, 4, 0.4), 2)])
    assert len(increase_alarms(profile(steep, "hessian.lambda_max"))) == 1
    again = np.concatenate([steep, np.full(25, steep[-1]), [20 * steep[-1]]])
    assert len(increase_alarms(profile(again, "hessian.lambda_max"))) == 2


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
