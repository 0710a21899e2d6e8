from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from hnf_offline.detect.alarms import all_alarms
from hnf_offline.findings import Relation
from hnf_offline.relate.relations import auroc, aurocs, relations
from hnf_offline.table import table

from .planted import Planted, relaxation, rows, spike, unrelated


def related(run: Planted, n_spikes: int | None = None) -> dict[str, Relation]:
    spikes = run.spikes[:n_spikes]
    alarms = all_alarms(run.profile, run.log, spikes)
    return {found.rule: found for found in relations(run.profile, run.log, spikes, alarms, run.gap)}


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_relation_is_found_and_the_rivals_are_not(seed: int) -> None:
    found = related(relaxation(seed))
    ours, rival = found["stability alarm"], found["gradient norm z > 3"]
    assert ours.recall == 1
    assert ours.precision == 1
    assert ours.p_value is not None
    assert ours.p_value <= 0.05
    assert ours.chance_recall is not None
    assert ours.chance_recall < 0.8
    assert ours.lead_median is not None
    assert ours.lead_median >= ours.resolution
    assert found["S > 1"].lead_median == pytest.approx(20, abs=8)
    assert rival.recall is not None
    assert rival.recall <= 0.4
    assert rival.p_value is None or rival.p_value > 0.05


def test_unrelated_signals_are_seldom_significant() -> None:
    p = [related(unrelated(seed, 700))["stability alarm"].p_value for seed in range(10)]
    assert sum(value is not None and value <= 0.1 for value in p) <= 3
    assert np.median([value for value in p if value is not None]) > 0.15


def test_rules_are_compared_over_the_same_spikes() -> None:
    run = relaxation(1)
    late = run.profile.filter(pl.col("step") > 500)
    found = relations(late, run.log, run.spikes, (), run.gap)
    assert len({relation.n_spikes for relation in found}) == 1
    assert found[0].n_spikes == sum(onset > 504 for onset in run.onsets)


@pytest.mark.parametrize("n_spikes", [0, 1])
def test_few_spikes_give_none_where_nothing_can_be_said(n_spikes: int) -> None:
    found = related(relaxation(2), n_spikes)
    ours = found["stability alarm"]
    assert ours.n_spikes == n_spikes
    if n_spikes == 0:
        assert ours.recall is None
        assert ours.p_value is None
        assert ours.lead_median is None
    else:
        assert ours.recall == 1
        assert ours.p_value is not None
        assert ours.p_value >= 1 / (ours.n_shifts + 1)


def test_log_only_and_nothing_at_all() -> None:
    run = relaxation(0, length=400)
    found = relations(run.profile.clear(), run.log, run.spikes, (), None)
    assert found
    assert all(relation.baseline for relation in found)
    assert relations(run.profile.clear(), None, (), (), None) == ()


def test_spikes_at_a_resume_are_not_scored() -> None:
    run = relaxation(0, length=400)
    at_resume = tuple(spike(1, onset, at_resume=True) for onset in run.onsets)
    assert all(r.n_spikes == 0 for r in relations(run.profile, run.log, at_resume, (), run.gap))


def test_the_floor_of_p_is_set_by_the_checkpoints() -> None:
    run = relaxation(0, length=300, gap=10)
    for relation in relations(
        run.profile, run.log, run.spikes, all_alarms(run.profile, run.log, run.spikes), 10
    ):
        assert relation.n_shifts < 30
        assert relation.p_value is None or relation.p_value >= 1 / 30


def test_auroc_by_hand() -> None:
    assert auroc(np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, False, True, True])) == 1
    assert auroc(np.array([1.0, 1.0, 1.0]), np.array([False, True, True])) == 0.5
    assert auroc(np.array([1.0, np.nan]), np.array([True, False])) is None
    values = np.random.default_rng(0).normal(size=40)
    positive = np.arange(40) % 3 == 0
    pairs = values[positive][:, None] > values[~positive][None, :]
    assert auroc(values, positive) == pytest.approx(pairs.mean())


def test_auroc_of_a_climb_stands_beside_the_trivial_scores() -> None:
    run = relaxation(0)
    found = aurocs(run.profile, run.log, run.spikes, (), run.gap)
    ours = {entry["horizon"]: entry for entry in found if entry["rule"] == "S"}
    assert set(ours) == {16, 40}
    assert ours[16]["auroc"] > 0.95
    assert 0.3 < ours[16]["step_index"] < 0.7
    assert ours[16]["auroc"] > ours[16]["time_since_spike"]
    norm = next(e for e in found if e["rule"] == "gradient norm z" and e["horizon"] == 16)
    assert norm["auroc"] < 0.7
    assert norm["baseline"]
    assert aurocs(run.profile, run.log, (), (), run.gap) == []


def test_layers_that_never_spoke_are_left_out() -> None:
    run = relaxation(0, length=400)
    steps = np.arange(8, 400, 8)
    layers = table([
        *rows("hessian.stability_ratio", steps, np.full(steps.size, 0.1), "calm", 1),
        *rows("hessian.stability_ratio", steps, np.where(steps == 200, 5.0, 0.1), "loud", 2),
    ])
    found = relations(pl.concat([run.profile, layers]), run.log, run.spikes, (), run.gap)
    assert {relation.layer for relation in found} == {"", "loud"}
