"""The study's scores: against a second scorer, and on runs whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.study.scoring import area, areas_under, bootstrapped, pooled
from tests.benchmarks.study.planted import run
from tests.benchmarks.study.reference import tally

RULE = "stability alarm"
on_grid = st.integers(0, 100).map(lambda place: 100 + 8 * place)
one_run = st.tuples(
    st.lists(st.integers(50, 1000), max_size=8, unique=True), st.lists(on_grid, max_size=12, unique=True)
)


@settings(max_examples=100, deadline=None)
@given(made=st.lists(one_run, min_size=1, max_size=5), window=st.sampled_from([16, 40, 80, 160]))
def test_two_scorers_that_share_no_code_agree(made, window):
    runs = [run(onsets, alarms, seed=seed) for seed, (onsets, alarms) in enumerate(made)]
    found = pooled(runs, RULE, window)
    tallies = [tally(alarms, onsets, list(range(100, 901, 8)), window, 100, 900) for onsets, alarms in made]
    spikes, alarms = sum(one.spikes for one in tallies), sum(one.alarms for one in tallies)
    assert (found.spikes, found.alarms) == (spikes, alarms)
    if spikes:
        assert found.recall.value == pytest.approx(sum(one.announced for one in tallies) / spikes)
        assert found.chance_recall == pytest.approx(
            sum(one.chance_announced for one in tallies) / spikes, abs=1e-9
        )
        assert len(found.leads) == sum(one.announced for one in tallies)
    if alarms:
        assert found.precision.value == pytest.approx(sum(one.correct for one in tallies) / alarms)
        assert found.chance_precision == pytest.approx(sum(one.chance_correct for one in tallies) / alarms)
    false = sum(one.alarms - one.correct for one in tallies)
    assert found.false_alarms_per_1000.value == pytest.approx(1000 * false / (801 * len(runs)))


def test_a_healthy_run_counts_with_its_false_alarms():
    spiky = run([300, 600], [276, 580])
    healthy = run([], [204, 404, 604], seed=1)
    alone, both = pooled([spiky], RULE, 80), pooled([spiky, healthy], RULE, 80)
    assert alone.precision.value == 1.0 and both.precision.value == pytest.approx(2 / 5)
    assert both.recall.value == 1.0 and alone.leads == both.leads == (20, 24)
    assert both.false_alarms_per_1000.value == pytest.approx(3000 / 1602)


def test_a_rule_without_data_anywhere_has_no_scores():
    assert pooled([run([300], [276])], "RMS_t > 2.3", 80) is None


def test_the_interval_is_over_runs_not_over_spikes():
    # One run of ten announced spikes and three runs of one missed spike each: runs decide how sure the share is.
    above, below = np.array([10, 0, 0, 0]), np.array([10, 1, 1, 1])
    told = bootstrapped(above, below)
    assert told.value == pytest.approx(10 / 13)
    assert told.low == 0.0 and told.high > 0.95
    assert bootstrapped(above[:2], below[:2]).low is None, "two runs carry no interval"
    assert bootstrapped(above, 0 * below).value is None


def test_intervals_cover_what_they_are_about():
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        below = generator.integers(3, 9, size=30)
        above = generator.binomial(below, 0.6)
        told = bootstrapped(above, below)
        covered += told.low <= 0.6 <= told.high
    assert 0.88 <= covered / 200 <= 0.99


def test_an_area_is_the_share_of_pairs_in_order():
    onsets = [300, 600]
    steps = np.arange(100, 901, 8)
    values = np.random.default_rng(1).normal(size=steps.size)
    one = run(onsets, [], score=values.tolist())
    found = area([one], "S", 40)
    soon = np.array([any(0 < onset - step <= 40 for onset in onsets) for step in steps])
    shaken = np.array([any(0 <= step - onset <= 40 for onset in onsets) for step in steps])
    kept = ~shaken & (soon | (steps <= 860))
    above, below = values[kept & soon], values[kept & ~soon]
    assert found.auroc.value == pytest.approx(np.mean(above[:, None] > below[None, :]))
    assert found.checkpoints == kept.sum() and found.base_rate == pytest.approx(above.size / kept.sum())
    perfect = run(onsets, [], score=soon.astype(float).tolist())
    assert area([perfect], "S", 40).auroc.value == area([perfect], "S", 40).auprc.value == 1.0


def test_what_follows_a_failure_for_good_is_not_ranked():
    quiet = run([], [], last=500)
    failing = run(
        [300], [204, 276, 404], last=300, measured=500
    )  # the analysis ends a failed run at its onset
    assert area([failing], "S", 40).checkpoints == len(range(100, 300, 8))
    assert pooled([failing], RULE, 80).alarms == 2
    assert area([quiet], "S", 40) is None


def test_areas_have_intervals_from_three_runs_on():
    runs = [run([300, 600], [], seed=seed, score=None) for seed in range(3)]
    assert area(runs[:2], "S", 40).auroc.low is None
    told = area(runs, "S", 40).auroc
    assert told.low <= told.value <= told.high


def test_readings_of_one_run_are_drawn_together():
    twice = [run([300, 600], alarms, seed=seed) for seed in range(4) for alarms in ([276, 580], [])]
    told = pooled(twice, RULE, 80)
    assert told.runs == 4 and told.spikes == 16
    assert told.recall.value == told.recall.low == told.recall.high == 0.5, "all runs are alike"


@pytest.mark.parametrize("seed", range(8))
def test_areas_are_those_of_scikit_learn(seed):
    from sklearn.metrics import average_precision_score, roc_auc_score

    drawn = np.random.default_rng(seed)
    values = drawn.integers(0, 3 + 10 * seed, 60).astype(float)
    positive = drawn.random(60) < 0.3
    positive[:2] = True, False
    assert areas_under(positive, values) == pytest.approx((
        roc_auc_score(positive, values),
        average_precision_score(positive, values),
    ))
