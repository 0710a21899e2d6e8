"""Experiment 3 compares every run with itself, and counts what failed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.study import intervention
from benchmarks.study.intervention import ARMS, Outcome, arms_of, cases, effects, geometric_mean, reductions
from benchmarks.study.intervention_page import headline, section
from hnf_offline.rerun.arms import AS_WAS
from hnf_offline.rerun.policies.registry import make_policies


def outcome(run: str, arm: str, onsets: int, final_loss: float, *, family: str = "A") -> Outcome:
    failed = math.isinf(final_loss)
    return Outcome(run, family, 200, arm, onsets, failed, final_loss, 0.1, 2, "exact")


def test_runs_are_drawn_by_seed_and_take_every_setting_of_their_family():
    chosen = cases()
    assert len(chosen) == 3 * 8 and {case.split for case in chosen} == {"fresh"}
    for letter in "ABD":
        settings = [case.setting for case in chosen if case.family == letter]
        assert len(set(settings)) == 4 and all(settings.count(one) == 2 for one in settings)
    assert all(case.batch is None for case in chosen), (
        "steps of which only a sample is saved cannot be taken again"
    )


def test_every_policy_can_be_made_for_the_runs_it_is_for():
    adam, sgd = cases((200,), "A")[0], cases((200,), "D")[0]
    for case in (adam, sgd):
        for spelling in arms_of(case).values():
            assert make_policies(spelling)
    assert set(arms_of(adam)) == set(ARMS) and set(arms_of(sgd)) == set(ARMS) - {"beta2 = 0.9"}
    assert arms_of(adam)["cosine to 0"] == "lr-cosine=1100"


def test_a_policy_is_compared_with_the_same_runs_as_they_were():
    found = effects([
        *(outcome(f"r{k}", AS_WAS, 4, 1.0) for k in range(3)),
        *(outcome(f"r{k}", "ratchet", 1, 0.5) for k in range(3)),
        outcome("r9", AS_WAS, 100, 1.0),  # not tried under the ratchet
    ])
    was, ratchet = found
    assert (was.arm, was.fewer.value, was.loss.value) == (AS_WAS, 1.0, 1.0)
    assert ratchet.fewer.value == pytest.approx(3 / 12) and ratchet.loss.value == pytest.approx(0.5)
    assert ratchet.fewer.low == pytest.approx(0.25) and ratchet.fewer.high == pytest.approx(0.25)


def test_a_failed_run_has_no_final_loss_but_is_counted():
    found = effects([
        outcome("r0", AS_WAS, 1, math.inf),
        outcome("r1", AS_WAS, 1, 2.0),
        outcome("r0", "clip", 0, 0.1),
        outcome("r1", "clip", 1, 1.0),
    ])
    assert (found[1].failed, found[1].failed_as_was, found[1].compared) == (0, 1, 1)
    assert found[1].loss.value == pytest.approx(0.5) and found[1].loss.low is None


def test_the_interval_of_a_ratio_of_losses():
    ratios = np.exp(np.random.default_rng(1).normal(-1, 0.3, 40)).tolist()
    found = geometric_mean(ratios)
    spread = float(np.std(np.log(ratios))) / math.sqrt(40)
    assert found.value == pytest.approx(math.exp(np.mean(np.log(ratios))))
    assert found.low is not None and found.high is not None
    assert math.log(found.high / found.low) == pytest.approx(2 * 1.96 * spread, rel=0.15)
    assert geometric_mean([]).value is None and geometric_mean([2.0, 8.0]).value == pytest.approx(4.0)


def test_only_a_rate_below_all_before_is_a_reduction():
    assert reductions(np.array([1.0, 0.5, 1.0, 0.5, 0.25, 0.25])) == 2
    assert reductions(np.array([1.0])) == 0 and reductions(np.array([0.1, 0.2, 0.3])) == 0


def test_the_page_tells_what_did_not_help():
    outcomes = [
        *(outcome(f"r{k}", AS_WAS, 4, 1.0) for k in range(4)),
        *(outcome(f"r{k}", "ratchet", 1, 0.5) for k in range(4)),
        *(outcome(f"r{k}", "restore", 3 + 2 * (k % 2), 0.9) for k in range(4)),
    ]
    told = headline(effects(outcomes))
    fewer, others = told.split(" Not surely fewer: ")
    assert "ratchet (0.25 [0.25, 0.25] times the onsets" in fewer and "restore" not in fewer
    assert others.startswith("restore (1.00 [")
    text = "\n".join(section(outcomes))
    assert "4 of them are exact against the run, 0 close" in text and "| restore | 4 | 16 |" in text
    assert "close. The final" in text
    strayed = [replace(one, reproduction="not_reproducible") for one in outcomes if one.arm == AS_WAS]
    told = "\n".join(section(strayed + [one for one in outcomes if one.arm != AS_WAS]))
    assert "0 of them are exact against the run, 0 close, 4 part from it once rounding" in told


def test_a_run_is_tried_once_and_what_fails_is_told(tmp_path):
    case = replace(cases((200,), "D")[0], steps=90)
    arms = {"explode": "lr-constant=50", "quarter": "lr-scale=0.25"}
    was, explode, quarter = intervention.tried(case, tmp_path, arms)
    assert was.reproduction in {"exact", "close"} and not was.failed
    assert explode.failed and explode.final_loss == math.inf
    assert not quarter.failed and quarter.final_loss > was.final_loss, "a quarter of the rate learns slower"
    kept = list((tmp_path / "interventions").iterdir())
    before = kept[0].stat().st_mtime_ns
    assert intervention.tried(case, tmp_path, arms) == [was, explode, quarter]
    assert len(kept) == 1 and kept[0].stat().st_mtime_ns == before
    intervention.tried(case, tmp_path, {"quarter": "lr-scale=0.25"})
    assert len(list((tmp_path / "interventions").iterdir())) == 2, "other policies are another experiment"
