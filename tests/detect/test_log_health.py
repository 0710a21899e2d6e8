"""What a log shows beside its spikes: planted, told with its steps and numbers, and silent on healthy logs."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from hnf_offline.detect.highest import highest_rise
from hnf_offline.detect.log_events import Written, log_events, log_pathologies
from hnf_offline.detect.spikes import find_spikes
from hnf_offline.synthetic import hover_run, loss_with_spikes, null_run, relaxation_run

ROWS = 1000


def healthy(seed=0, rows=ROWS, **columns) -> pl.DataFrame:
    log, _ = loss_with_spikes(rows, [], seed=seed, noise=0.02)
    draw = np.random.default_rng(seed)
    usual = {
        "grad_norm": np.exp(0.3 * draw.standard_normal(rows)),
        "loss_scale": np.full(rows, 65536.0),
        "throughput": 1e5 * np.exp(0.1 * draw.standard_normal(rows)),
    }
    return log.with_columns(
        pl.Series(name, values, dtype=pl.Float64) for name, values in (usual | columns).items()
    )


def events(log, how=None):
    return log_events(log, find_spikes(log), how)


def one(log, kind, how=None):
    (event,) = (event for event in events(log, how) if event.kind == kind)
    return event


@pytest.mark.parametrize("seed", range(10))
def test_a_healthy_log_has_none(seed):
    assert events(healthy(seed)) == ()


@pytest.mark.parametrize("make", [relaxation_run, null_run, hover_run])
def test_runs_that_train_have_nothing_wrong(make):
    log = make().log
    assert log_pathologies(log, find_spikes(log)) == ()


def test_empty_logs_and_logs_of_one_row_have_none():
    assert (
        log_events(pl.DataFrame({"step": [], "loss": []}, schema={"step": pl.Int64, "loss": pl.Float64}))
        == ()
    )
    assert events(pl.DataFrame({"step": [7], "loss": [2.0], "grad_norm": [1.0], "loss_scale": [1.0]})) == ()
    assert events(pl.DataFrame({"step": range(100), "loss": np.full(100, 2.0)})) == ()


def test_each_stretch_of_nan_is_told_with_its_steps():
    loss = healthy()["loss"].to_numpy().copy()
    loss[100:120] = np.nan
    loss[500] = np.inf
    first, second = (e for e in events(healthy(loss=loss)) if e.kind == "nonfinite-loss")
    assert (first.first, first.last, second.first, second.last) == (101, 120, 501, 501)
    assert "NaN in 20 rows" in first.evidence
    assert "inf in 1 row" in second.evidence
    assert {first.severity, second.severity} == {"danger"}


def test_a_loss_of_nan_alone_is_one_stretch_to_the_end():
    log = pl.DataFrame({"step": range(50), "loss": np.full(50, np.nan)})
    assert "the log ends so" in one(log, "nonfinite-loss").evidence


def test_a_nan_written_as_zero_is_told_as_hidden():
    loss, norms = (healthy()[name].to_numpy().copy() for name in ("loss", "grad_norm"))
    loss[300:304], norms[300:304] = 0.0, np.nan
    event = one(healthy(loss=loss, grad_norm=norms), "nonfinite-loss")
    assert (event.first, event.last) == (301, 304)
    assert "logged as 0.0" in event.evidence
    assert not any(e.kind == "nonfinite-gradient" for e in events(healthy(loss=loss, grad_norm=norms)))


def test_hundreds_of_stretches_are_summed_up():
    loss = healthy()["loss"].to_numpy().copy()
    loss[50:950:3] = np.nan
    told = [e for e in events(healthy(loss=loss)) if e.kind == "nonfinite-loss"]
    assert len(told) == 21
    assert "280 more stretches" in told[-1].evidence


def test_gradients_that_break_under_a_finite_loss():
    norms = healthy()["grad_norm"].to_numpy().copy()
    norms[200:220] = np.inf
    scaled = one(healthy(grad_norm=norms), "nonfinite-gradient")
    assert scaled.severity == "info"
    plain = one(healthy(grad_norm=norms).drop("loss_scale"), "nonfinite-gradient")
    assert (plain.severity, plain.first, plain.last) == ("warning", 201, 220)


def test_a_gradient_norm_that_stands_out_alone_is_told_and_not_beside_a_spike():
    norms, loss = (healthy()[name].to_numpy().copy() for name in ("grad_norm", "loss"))
    norms[400] = 80.0
    event = one(healthy(grad_norm=norms), "gradient-outliers")
    assert (event.severity, event.first) == ("info", 401)
    assert "80 at 401" in event.evidence
    loss[400:402] *= 3
    assert not any(e.kind == "gradient-outliers" for e in events(healthy(grad_norm=norms, loss=loss)))


def test_a_slow_climb_is_a_divergence_although_no_row_jumps():
    place = np.arange(ROWS)
    loss = 2 + 3 * np.exp(-place / 100) + np.maximum(0, place - 500) * 0.005
    event = one(pl.DataFrame({"step": place, "loss": loss}), "slow-divergence")
    assert find_spikes(pl.DataFrame({"step": place, "loss": loss})) == ()
    assert 420 <= event.first <= 540
    assert event.last == ROWS - 1
    assert event.severity == "danger"


@pytest.mark.parametrize("end", [0.2, 0.6])
def test_a_climb_of_a_fraction_or_one_within_noise_is_none(end):
    place = np.arange(ROWS)
    noise = 1.0 if end > 0.5 else 0.01
    loss = 2 + 3 * np.exp(-place / 100) + np.maximum(0, place - 500) / 500 * end
    loss += noise * np.random.default_rng(0).standard_normal(ROWS)
    log = pl.DataFrame({"step": place, "loss": loss})
    assert not any(e.kind == "slow-divergence" for e in events(log))


def test_a_divergence_that_jumps_is_told_once():
    loss = healthy()["loss"].to_numpy().copy()
    loss[600:] = 9.0
    assert not any(e.kind == "slow-divergence" for e in events(healthy(loss=loss)))


def test_a_log_that_ends_in_a_spike():
    loss = healthy()["loss"].to_numpy().copy()
    loss[-2:] = 9.0
    event = one(healthy(loss=loss), "open-spike")
    assert (event.severity, event.first, event.last) == ("info", 999, 1000)


def test_a_plateau_is_told_once_and_only_from_the_start_of_training():
    loss = 3.4 * np.exp(0.005 * np.random.default_rng(0).standard_normal(ROWS))
    assert one(pl.DataFrame({"step": np.arange(ROWS), "loss": loss}), "plateau").severity == "warning"
    late = pl.DataFrame({"step": 100_000 + np.arange(ROWS), "loss": loss})
    assert not any(e.kind == "plateau" for e in events(late))


# --- mixed precision ---


def halving(start, rows_each, steps, first=65536.0):
    scale = np.full(ROWS, first)
    halvings = np.clip((np.arange(ROWS) - start) // rows_each + 1, 0, steps)
    return scale / 2.0**halvings


def test_a_loss_scale_that_falls_to_its_floor_is_a_collapse():
    event = one(healthy(loss_scale=halving(600, 5, 30)), "loss-scale-collapse")
    assert (event.severity, event.first, event.last) == ("danger", 676, 1000)  # sixteen halvings to 1
    assert "65536" in event.evidence
    assert "stayed down" in event.evidence
    assert any(
        found.kind == "loss-scale-collapse"
        for found in log_pathologies(healthy(loss_scale=halving(600, 5, 30)), ())
    )


def test_a_scale_that_began_small_or_is_fixed_is_no_collapse():
    for scale in (
        np.full(ROWS, 1.0),
        halving(300, 10, 2, 4.0),
        halving(0, 1, 17, 2.0**32),
        np.full(ROWS, 12.0),
    ):
        assert not any(e.kind == "loss-scale-collapse" for e in events(healthy(loss_scale=scale)))


def test_the_search_for_a_scale_at_the_start_is_only_worth_knowing():
    skipped = np.zeros(ROWS)
    skipped[:12] = 1
    event = one(healthy(skipped_steps=skipped), "skipped-steps")
    assert (event.severity, event.first, event.last) == ("info", 1, 12)
    assert "12 of the first 12 steps" in event.evidence


@pytest.mark.parametrize("every, severity", [(10, "warning"), (200, "info")])
def test_updates_that_are_skipped_again_and_again_are_a_warning(every, severity):
    skipped = np.zeros(ROWS)
    skipped[20::every] = 1
    event = one(healthy(skipped_steps=skipped), "skipped-steps")
    assert (event.severity, event.first) == (severity, 21)
    assert f"{int(skipped.sum())} updates were skipped" in event.evidence


def test_a_burst_of_skipped_updates_is_a_warning_in_a_long_run():
    skipped = np.zeros(ROWS)
    skipped[500:510] = 1
    event = one(healthy(skipped_steps=skipped), "skipped-steps")
    assert event.severity == "warning"
    assert "10 of them in the 20 steps" in event.evidence


def test_halvings_count_where_skipped_steps_are_not_logged():
    event = one(healthy(loss_scale=halving(300, 40, 3)), "skipped-steps")
    assert "3 updates" in event.evidence


# --- what to do, and overfitting ---


def test_every_event_that_is_wrong_says_what_to_do():
    log = healthy(throughput=speed(0.5), loss_scale=np.append(np.full(500, 1024.0), np.full(500, 0.5)))
    wrong = log_pathologies(log, find_spikes(log), Written(ROWS, 20))
    assert {"throughput-drop", "loss-scale-collapse", "duplicated-log"} <= {one.kind for one in wrong}
    assert all(one.action.endswith(".") and one.evidence.endswith(".") for one in wrong)


def test_overfitting_is_a_pathology_from_the_lowest_validation_loss_on():
    steps = np.arange(ROWS)
    train = 3 * np.exp(-steps / 400)
    turned = np.where(steps < 500, train + 0.1, train[500] + 0.1 + (steps - 500) / 1000)
    for validation, expected in ((turned, [("overfitting", 501)]), (train + 0.1, [])):
        seen = np.where(steps % 50 == 0, validation, np.nan)
        log = pl.DataFrame({"step": steps + 1, "loss": train, "eval_loss": seen}).with_columns(
            pl.col("eval_loss").fill_nan(None)
        )
        found = log_pathologies(log, ())
        assert [(one.kind, one.step) for one in found] == expected
        assert all("eval_loss was lowest at step 501" in one.evidence and one.action for one in found)


# --- speed ---


def speed(change, start=400, stop=ROWS):
    values = 1e5 * np.exp(0.1 * np.random.default_rng(1).standard_normal(ROWS))
    values[start:stop] *= change
    values[::50] *= 0.1  # evaluations and checkpoints
    return values


@pytest.mark.parametrize("start", [400, 407, 413])
def test_a_lasting_drop_of_throughput_is_told_from_its_first_row(start):
    event = one(healthy(throughput=speed(0.5, start)), "throughput-drop")
    assert abs(event.first - (start + 1)) <= 3
    assert event.last == ROWS
    assert "50%" in event.evidence or "49%" in event.evidence or "51%" in event.evidence
    assert "stayed there" in event.evidence


def test_a_drop_that_ends_says_when_and_later_drops_are_their_own():
    event = one(healthy(throughput=speed(0.4, 400, 600)), "throughput-drop")
    assert 600 <= event.last <= 640
    twice = speed(0.4, 300, 400)
    twice[700:800] *= 0.4
    assert sum(e.kind == "throughput-drop" for e in events(healthy(throughput=twice))) == 2


def test_the_time_of_a_step_says_the_same():
    log = healthy(step_time=1 / speed(0.5)).drop("throughput")
    assert "time of a step" in one(log, "throughput-drop").evidence


@pytest.mark.parametrize("stop", [401, 405, 408])
def test_short_pauses_and_small_changes_are_no_drop(stop):
    assert not any(e.kind == "throughput-drop" for e in events(healthy(throughput=speed(0.05, 400, stop))))
    assert not any(e.kind == "throughput-drop" for e in events(healthy(throughput=speed(0.85))))


def test_a_drop_is_known_without_the_future():
    whole = one(healthy(throughput=speed(0.5, 407)), "throughput-drop")
    cut = healthy(throughput=speed(0.5, 407)).head(440)
    assert one(cut, "throughput-drop").first == whole.first


# --- how the log was written ---


def test_a_log_that_several_processes_wrote_says_so():
    log = healthy()
    assert "every step 4 times" in one(log, "duplicated-log", Written(ROWS, 3 * ROWS, (), 0)).evidence
    assert "times, as" not in one(log, "duplicated-log", Written(ROWS, 3 * ROWS, (), 7)).evidence
    assert "times, as" not in one(log, "duplicated-log", Written(ROWS, 20, (), 0)).evidence


def test_rows_repeated_after_a_restart_are_worth_knowing_and_without_one_a_warning():
    log = healthy()
    resumed = one(log, "duplicated-log", Written(ROWS, 20, (500,)))
    assert (resumed.severity, resumed.first) == ("info", 500)
    assert one(log, "restart", Written(ROWS, 20, (500,))).first == 500
    assert one(log, "duplicated-log", Written(ROWS, 20)).severity == "warning"
    assert one(log, "duplicated-log", Written(ROWS, 400, (500,))).severity == "warning"
    assert "7 of them with another loss" in one(log, "duplicated-log", Written(ROWS, 20, (500,), 7)).evidence
    assert events(log, Written(ROWS)) == ()


def test_a_stretch_that_is_not_logged_is_a_gap():
    event = one(healthy().filter(~pl.col("step").is_between(301, 600)), "gap")
    assert (event.first, event.last) == (300, 601)
    assert not any(e.kind == "gap" for e in events(healthy().filter(pl.col("step") % 50 == 0)))


# --- the highest row ---


def test_the_highest_row_that_is_no_spike_is_named_with_its_z():
    loss = healthy()["loss"].to_numpy().copy()
    loss[700] *= 1.09
    log = healthy(loss=loss)
    assert find_spikes(log) == ()
    highest = highest_rise(log, ())
    assert highest["step"] == 701
    assert 3 < highest["z"] < 6
    assert highest["before"] == pytest.approx(loss[700] / 1.09, rel=0.1)


def test_the_highest_row_lies_outside_of_spikes_and_may_be_none():
    log, _ = loss_with_spikes(600, [300], seed=1)
    (spike,) = find_spikes(log)
    highest = highest_rise(log, (spike,))
    assert not spike.onset <= highest["step"] < spike.end
    assert highest_rise(pl.DataFrame({"step": range(100), "loss": np.full(100, 2.0)}), ()) is None
    assert highest_rise(pl.DataFrame({"step": [1], "loss": [2.0]}), ()) is None


def test_the_highest_of_many_rows_is_that_of_all_medians():
    draw = np.random.default_rng(3)
    loss = 3 * np.exp(0.2 * draw.standard_normal(30_000))
    log = pl.DataFrame({"step": np.arange(30_000), "loss": loss})
    level = np.log(loss)
    rises = [level[row] - np.median(level[row - 60 : row]) for row in range(60, 30_000)]
    assert highest_rise(log, ())["step"] == 60 + int(np.argmax(rises))
