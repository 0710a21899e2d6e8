"""The learning curve: closed forms, planted truths, and silence on healthy runs."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats

from hnf_offline.detect.autocorrelation import ar1_paths
from hnf_offline.detect.learning_curve import learning_curve
from hnf_offline.detect.overfitting import validation_gaps
from hnf_offline.detect.power_law import PowerLaw, fit_power_law
from hnf_offline.detect.schedule import phases, schedule_effects
from hnf_offline.findings import Spike
from hnf_offline.quantities import loss_curve
from hnf_offline.report.curve_text import curve_lines
from hnf_offline.synthetic import hover_run, null_run, relaxation_run

STEPS = np.arange(1, 2001)


def noise(seed, rows=STEPS.size, phi=0.5, size=0.02):
    return size * ar1_paths(phi, rows, 1, seed)[0]


def power(floor=2.0, amplitude=4.0, exponent=0.5, steps=STEPS):
    return floor + amplitude * steps.astype(float) ** -exponent


def curve(loss, **columns):
    log = pl.DataFrame({"step": np.arange(1, loss.size + 1), "loss": loss, **columns})
    return learning_curve(log)


# closed forms


def test_moments_are_those_of_the_noise_and_do_not_see_the_trend():
    drawn = np.random.default_rng(0).exponential(size=20_000)
    trend = np.linspace(9, 0, drawn.size)
    residual = drawn - np.polyval(np.polyfit(np.arange(drawn.size), drawn, 1), np.arange(drawn.size))
    assert loss_curve.loss_deviation(drawn + trend) == pytest.approx(residual.std(ddof=1))
    assert loss_curve.loss_skewness(drawn + trend) == pytest.approx(stats.skew(residual), rel=1e-6)
    assert loss_curve.loss_excess_kurtosis(drawn + trend) == pytest.approx(stats.kurtosis(residual), rel=1e-6)
    assert loss_curve.loss_skewness(drawn) == pytest.approx(2, abs=0.2)  # of the exponential distribution
    assert loss_curve.loss_mean(np.array([1.0, 2.0, 6.0])) == 3.0
    assert np.isnan(loss_curve.loss_skewness(np.arange(50.0)))


def test_formulas_of_score_gap_target_and_gain():
    loss = np.array([3.0, 2.0, 4.0])
    assert loss_curve.explosion_score(loss, np.full(3, 0.5))[1:].tolist() == [-2.0, 4.0]
    assert loss_curve.validation_gap(np.array([2.0]), np.array([1.5])) == 0.5
    assert loss_curve.plateau_score(np.array([1.0, 3.0]), 2.0) == 1.0
    assert loss_curve.steps_to_target(np.array([10, 20, 30]), np.array([3.0, 2.0, 1.0]), 2.0) == 20
    assert loss_curve.steps_to_target(np.array([10, 20]), np.array([3.0, np.nan]), 2.0) is None
    assert loss_curve.power_law(np.array([4.0]), 2.0, 4.0, 0.5)[0] == 4.0
    assert loss_curve.expected_gain(100.0, 10.0, 1.0) == pytest.approx(0.05)
    assert loss_curve.schedule_effect(
        np.array([3.0, 2.0, 1.5, 0.5]), np.array([0, 0, 1, 1])
    ) == pytest.approx(0.5)


def test_parts_of_the_loss_are_told_with_their_shares_and_jumps():
    draw = np.random.default_rng(0)
    z, router = 0.1 + 1e-3 * draw.standard_normal((2, 2000))
    router[1199] += 0.5
    task = power() + noise(0)
    log = pl.DataFrame({
        "step": STEPS, "loss": task + z + 0.01 * router, "train/z_loss": z, "router_aux_loss": router,
        "eval_loss": task, "loss_scale": z, "total_loss": task, "train_loss": task + z + 0.01 * router,
        "avg_loss": task, "glossary": z, "idle_loss": 0 * z, "short_loss": pl.Series(np.where(STEPS < 20, z, np.nan)),
    })  # fmt: skip
    told = {one["column"]: one for one in learning_curve(log)["components"]}
    assert set(told) == {
        "train/z_loss",
        "router_aux_loss",
    }  # not other data's, nor the loss itself, nor its scale
    level = log["loss"][-100:].mean()
    assert told["train/z_loss"]["share"] == pytest.approx(z[-100:].mean() / level)
    assert told["train/z_loss"]["deviation"] == pytest.approx(1e-3, rel=0.3)
    assert told["router_aux_loss"]["explosion"]["step"] == 1200
    assert (
        told["router_aux_loss"]["explosion"]["score"] > 100 > 10 > told["train/z_loss"]["explosion"]["score"]
    )
    assert learning_curve(log.select("step", "loss"))["components"] == []
    lines = [one for one in curve_lines(learning_curve(log)) if "router_aux_loss" in one]
    assert len(lines) == 1 and "1,200" in lines[0] and "of the loss as logged" in lines[0]


def test_the_share_of_a_part_is_that_of_the_means():
    assert loss_curve.component_share(np.array([1.0, 2.0]), np.array([5.0, 7.0])) == 0.25
    assert np.isnan(loss_curve.component_share(np.ones(2), np.array([1.0, -1.0])))


# the power law


@pytest.mark.parametrize("rows", [200, 2000])
@pytest.mark.parametrize(
    "truth", [(2.0, 4.0, 0.5), (0.5, 4.0, 0.3), (2.0, 40.0, 1.2), (0.0, 4.0, 0.2), (2.0, 4.0, 0.1)]
)
def test_a_power_law_without_noise_is_recovered(truth, rows):
    fit = fit_power_law(STEPS[:rows], power(*truth)[:rows])
    assert isinstance(fit, PowerLaw)
    assert (fit.floor, fit.amplitude, fit.exponent) == pytest.approx(truth, rel=1e-6, abs=1e-6)
    assert fit.gain == pytest.approx(truth[1] * (rows ** -truth[2] - (2 * rows) ** -truth[2]), rel=1e-6)
    low, high = fit.exponent_interval
    assert low is not None and high is not None
    assert low < fit.exponent < high < low + 1e-6


def test_a_power_law_in_a_log_of_four_digits_is_recovered():
    fit = fit_power_law(STEPS, power().round(4))
    assert isinstance(fit, PowerLaw)
    assert (fit.floor, fit.exponent) == (pytest.approx(2, abs=1e-3), pytest.approx(0.5, rel=1e-3))


def test_the_end_of_a_run_alone_says_nothing_of_a_power_law():
    late = fit_power_law(STEPS + 10_000, power() + noise(0, size=1e-3))
    assert isinstance(late, str) and "2-fold" in late


@pytest.mark.parametrize("back", [110, 120, 150, 200, 300, 1000])
def test_a_jump_is_never_worth_continuing(back):
    # A run that begins again with a loss too high and is back after some steps: nothing to extrapolate.
    fit = fit_power_law(STEPS, np.where(back > STEPS, 3.0, 2.0) + noise(0, phi=0.0, size=1e-3))
    assert isinstance(fit, str) if back <= 120 else isinstance(fit, str) or fit.worth != "yes"


def test_a_power_law_with_little_noise_is_recovered():
    fit = fit_power_law(STEPS, power(exponent=0.5) + noise(0, phi=0.0, size=1e-3))
    assert isinstance(fit, PowerLaw)
    assert (fit.floor, fit.exponent) == (pytest.approx(2, abs=0.01), pytest.approx(0.5, rel=0.03))
    assert fit.gain == pytest.approx(4 * (2000**-0.5 - 4000**-0.5), rel=0.02)


@pytest.mark.parametrize("phi", [0.0, 0.7])
def test_its_intervals_cover_the_truth(phi):
    gain = 4 * (2000**-0.5 - 4000**-0.5)
    of_floor = of_gain = 0
    for seed in range(60):
        fit = fit_power_law(STEPS, power() + noise(seed, phi=phi))
        assert isinstance(fit, PowerLaw)
        low, high = fit.floor_interval
        of_floor += (low is None or low <= 2) and high is not None and high >= 2
        of_gain += fit.gain_interval[0] <= gain <= fit.gain_interval[1]
    assert of_floor >= 52 and of_gain >= 52


def test_worth_continuing_follows_what_is_left_to_gain():
    steep = fit_power_law(STEPS, power(floor=0.5, amplitude=4.0, exponent=0.3) + noise(0))
    flat = fit_power_law(
        STEPS, power(floor=2.0, amplitude=40.0, exponent=1.2) + noise(0, phi=0.0, size=0.001)
    )
    assert isinstance(steep, PowerLaw) and isinstance(flat, PowerLaw)
    assert (steep.worth, flat.worth) == ("yes", "no")


@pytest.mark.parametrize("seed", range(5))
def test_no_power_law_where_there_is_none(seed):
    draw = np.random.default_rng(seed)
    assert isinstance(fit_power_law(STEPS, 2 + 0.02 * draw.standard_normal(STEPS.size)), str)
    assert isinstance(fit_power_law(STEPS, 2 + 1e-3 * STEPS + 0.02 * draw.standard_normal(STEPS.size)), str)
    assert isinstance(fit_power_law(STEPS[:60], power()[:60]), str)


# overfitting


def overfitting_log(rise, *, train_rises=False, seed=0):
    draw = np.random.default_rng(seed)
    train = power() + 0.02 * draw.standard_normal(STEPS.size)
    best = 1000
    if train_rises:
        train += np.maximum(STEPS - best, 0) * rise / 1000
    at = STEPS % 100 == 0
    validation = (
        power(exponent=0.5)[best - 1] + 0.1 + np.abs(STEPS - best) / 1000 * np.where(best > STEPS, 0.5, rise)
    )
    validation = validation + 0.004 * draw.standard_normal(STEPS.size)
    return pl.DataFrame({
        "step": STEPS,
        "loss": train,
        "eval_loss": pl.Series(np.where(at, validation, np.nan)).fill_nan(None),
    })


@pytest.mark.parametrize("seed", range(5))
def test_overfitting_is_found_where_it_was_planted(seed):
    gap = validation_gaps(overfitting_log(0.3, seed=seed))
    assert gap is not None and gap.onset is not None
    assert abs(gap.onset - 1000) <= 100
    assert gap.growing
    assert (gap.column, gap.evaluations) == ("eval_loss", 20)
    assert gap.last > gap.first


@pytest.mark.parametrize("seed", range(20))
def test_a_flat_validation_loss_or_one_that_rises_with_the_training_loss_is_no_overfitting(seed):
    for log in (overfitting_log(0.0, seed=seed), overfitting_log(0.3, train_rises=True, seed=seed)):
        gap = validation_gaps(log)
        assert gap is not None and gap.onset is None


def accuracy_log(fall, *, noise=0.003, seed=0):
    draw = np.random.default_rng(seed)
    accuracy = 0.9 - np.where(STEPS < 1000, 0.3 * (1 - STEPS / 1000), fall * (STEPS - 1000) / 1000)
    accuracy = accuracy + noise * draw.standard_normal(STEPS.size)
    seen = pl.Series(np.where(STEPS % 100 == 0, accuracy, np.nan)).fill_nan(None)
    return pl.DataFrame({"step": STEPS, "loss": power(), "eval/accuracy": seen, "train_acc": accuracy})


@pytest.mark.parametrize("seed", range(5))
def test_a_validation_accuracy_that_turned_is_told_with_its_best_step(seed):
    told = learning_curve(accuracy_log(0.2, seed=seed))["accuracy"]
    assert (told["column"], told["evaluations"], told["turned"]) == ("eval/accuracy", 20, True)
    assert abs(told["best_step"] - 1000) <= 100 and told["best"] == pytest.approx(0.9, abs=0.02)
    assert told["drop"] == pytest.approx(0.18, abs=0.03)


@pytest.mark.parametrize("seed", range(20))
def test_a_validation_accuracy_that_rises_or_rests_has_not_turned(seed):
    for log in (
        accuracy_log(0.0, seed=seed),
        accuracy_log(-0.1, seed=seed),
        accuracy_log(0.0, noise=0.03, seed=seed),
    ):
        assert not learning_curve(log)["accuracy"]["turned"]
    few = accuracy_log(0.2).with_columns(
        pl.when(pl.col("step") > 500).then(None).otherwise(pl.col("eval/accuracy")).alias("eval/accuracy")
    )
    assert learning_curve(few)["accuracy"] is None


def test_the_drop_of_an_accuracy_is_from_its_best_to_the_median_of_the_last_three():
    assert loss_curve.accuracy_drop(np.array([0.5, 0.9, 0.6, 0.7, 0.8])) == pytest.approx(0.2)


def test_without_a_validation_loss_there_is_no_gap():
    assert validation_gaps(pl.DataFrame({"step": STEPS, "loss": power(), "eval_accuracy": power()})) is None


# schedule


@pytest.mark.parametrize("planted", [-0.3, 0.2])
def test_the_effect_of_a_jump_of_the_rate_is_recovered(planted):
    rates = np.where(STEPS < 1000, 1e-3, 1e-4)
    inside = 0
    for seed in range(40):
        loss = 3 - STEPS * 1e-4 + noise(seed) + np.where(STEPS >= 1000, planted, 0)
        (effect,) = schedule_effects(STEPS, loss, rates)
        assert (effect.step, effect.before, effect.after) == (1000, 1e-3, 1e-4)
        inside += effect.low <= planted <= effect.high
        assert (effect.effect > 0) == (planted > 0)
    assert inside >= 34


def test_smooth_schedules_have_no_jump():
    warm_up = np.minimum(STEPS / 100, 1) * 1e-3
    cosine = 1e-3 * (1 + np.cos(np.pi * STEPS / 2000)) / 2
    for rates in (warm_up, cosine, np.full(STEPS.size, np.nan)):
        assert not list(schedule_effects(STEPS, power(), rates))


def test_phases_are_those_of_the_schedule():
    rates = np.concatenate([np.linspace(0, 1, 200), np.ones(800), np.linspace(1, 0, 1000)[1:], [0]])
    found = [(one.name, one.first, one.last) for one in phases(STEPS, rates)]
    assert [name for name, *_ in found] == ["warm-up", "highest", "decay"]
    assert abs(found[0][2] - 200) <= 3 and abs(found[1][2] - 1000) <= 12
    short_jump = np.where((STEPS >= 1500) & (STEPS < 1503), 1.0, 0.1)
    assert [one.name for one in phases(STEPS, short_jump)] == ["highest"]


# all of it


def test_a_jump_in_one_row_has_the_highest_explosion_score_whatever_came_before():
    loss = power(amplitude=50) + noise(0, phi=0.0)  # by one sigma of all history the early fall would win
    loss[1499] += 1.0
    told = curve(loss)["explosion"]
    assert told["step"] == 1500 and told["score"] > 10


def test_a_plateau_scores_as_noise_and_a_fall_above_it():
    flat = curve(2 + noise(0, phi=0.0))["plateau"]["ratio"]
    falling = curve(3 - 1e-3 * STEPS + noise(0, phi=0.0))["plateau"]["ratio"]
    assert flat == pytest.approx(1, abs=0.3)
    assert falling > 2


def test_steps_and_tokens_to_a_target():
    loss = np.linspace(4, 2, 2000)
    log = pl.DataFrame({"step": STEPS, "loss": loss, "tokens_seen": STEPS * 512.0})
    told = learning_curve(log, target=3.0)["target"]
    assert told["given"] and told["step"] == pytest.approx(1010, abs=2)  # half a window of the median later
    assert told["tokens"] == told["step"] * 512
    assert learning_curve(log, target=1.0)["target"]["step"] is None
    usual = learning_curve(log)["target"]
    assert usual["loss"] == pytest.approx(2.2, abs=0.03) and not usual["given"]
    constant = learning_curve(log.with_columns(tokens_seen=pl.lit(512.0)), target=3.0)["target"]
    assert constant["tokens"] is None  # the tokens of one batch are no count


def test_epochs_are_told_apart():
    epochs = curve(3 - 1e-3 * STEPS, epoch=(STEPS - 1) / 1000)["epochs"]
    assert [(one["epoch"], one["first"], one["last"]) for one in epochs] == [(0, 1, 1000), (1, 1001, 2000)]
    assert epochs[0]["change_per_1000_steps"] == pytest.approx(-1)


def test_spikes_are_left_out_of_the_level():
    loss = power() + noise(0)
    loss[1949:1960] += 5
    log = pl.DataFrame({"step": STEPS, "loss": loss})
    spike = Spike(1, 1950, 1950, 1961, 2.1, 7.1, 5.0, 100.0, "spike", True, 11, 0.0, False)
    assert (
        learning_curve(log, [spike])["window"]["deviation"]
        < 0.05
        < learning_curve(log)["window"]["deviation"]
    )


@pytest.mark.parametrize("make", [relaxation_run, null_run, hover_run])
def test_runs_without_validation_do_not_overfit(make):
    assert learning_curve(make().log)["validation"] is None


def test_short_and_broken_logs_say_nothing():
    assert curve(power()[:30]) == {}
    assert curve(np.full(100, np.nan)) == {}
    assert curve(np.full(100, 2.0))["power_law"] is None
