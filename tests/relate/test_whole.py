from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hnf_offline.findings import Findings
from hnf_offline.relate.whole import find, replay_checks
from hnf_offline.run.records import Missing, Skipped
from hnf_offline.table import Row, table

from .planted import relaxation, rows, run_of


@pytest.fixture(scope="module")
def hf(real_log: pl.DataFrame, real_profile: pl.DataFrame) -> Findings:
    return find(run_of(real_log, real_profile), real_profile)


@pytest.mark.real
def test_the_real_spike_is_the_learning_rate(hf: Findings) -> None:
    story = hf.stories[0]
    assert (hf.spikes[0].onset, story.cause, story.lead_text) == (151, "learning-rate", "1 step")
    assert hf.last_healthy_checkpoint == 140
    assert hf.advice[0].numbers["largest_stable_learning_rate"] == pytest.approx(8.47e-3, rel=1e-3)
    assert "5.9 times past the edge" in hf.advice[0].action
    assert hf.verdict["word"] == "Spike"
    assert "2 spikes are too few to test" in hf.verdict["sentence"]
    assert "step 151" in hf.verdict["sentence"]


@pytest.mark.real
def test_the_real_bad_batch_is_not_curvature(hf: Findings) -> None:
    story = hf.stories[1]
    assert (hf.spikes[1].onset, story.cause) == (220, "bad-batch")
    assert "S was 0.35" in story.sentence
    assert "data of step 220" in story.sentence


@pytest.mark.real
def test_the_real_four_facts(hf: Findings) -> None:
    assert [fact["label"] for fact in hf.facts] == [
        "last healthy checkpoint",
        "lead",
        "beats gradient norm?",
        "checkpoints read",
    ]
    assert [fact["value"] for fact in hf.facts] == [
        "140",
        "1 step (spike 1)",
        "not shown (2 spikes)",
        "11 of 11",
    ]


@pytest.mark.real
def test_the_real_log_alone_says_what_it_cannot_say(real_log: pl.DataFrame) -> None:
    found = find(run_of(real_log, table()), table())
    assert len(found.spikes) == 2
    assert "Without S nothing can be said" in found.verdict["sentence"]
    assert found.last_healthy_checkpoint is None
    assert {relation.baseline for relation in found.relations} == {True}


@pytest.mark.real
def test_the_real_run_before_its_spike_is_stable(real_log: pl.DataFrame, real_profile: pl.DataFrame) -> None:
    log, profile = real_log.filter(pl.col("step") < 140), real_profile.filter(pl.col("step") <= 140)
    found = find(run_of(log, profile), profile)
    assert found.verdict["word"] == "Stable"
    assert "0.59" in found.verdict["sentence"]
    assert found.advice[0].action == "nothing to do"


def test_a_relaxation_run_end_to_end_is_strict_json_and_deterministic() -> None:
    made = relaxation(0, length=600)
    run = run_of(made.log, made.profile)
    first, second = (
        find(run, made.profile),
        find(run, made.profile.sample(fraction=1.0, shuffle=True, seed=1)),
    )
    text = json.dumps(first.to_json(), allow_nan=False, sort_keys=True)
    assert text == json.dumps(second.to_json(), allow_nan=False, sort_keys=True)
    assert len(first.spikes) == len(made.onsets)
    assert {story.cause for story in first.stories} == {"edge"}
    assert all(one.spike is not None for one in first.alarms if one.rule in {"edge", "forecast"})
    assert "chance" in first.verdict["sentence"]
    assert first.verdict["sentence"].count("(") == first.verdict["sentence"].count(")")
    assert first.rates["auroc"]


def test_a_long_log_is_searched_in_blocks_that_do_not_look_ahead() -> None:
    raised = pl.when(pl.col("step") > 6000).then(0.1).otherwise(0.0)
    log = quiet_log(9000).with_columns((raised + pl.col("loss")).alias("loss"))
    points = find(run_of(log, table()), table()).change_points
    causal = [point.step for point in points if point.causal]
    assert causal
    assert 6000 < causal[0] < 6200


def test_missing_and_skipped_are_passed_on() -> None:
    made = relaxation(0, length=300)
    run = replace(
        run_of(made.log, made.profile),
        missing=(Missing("batches", "no replay"),),
        skipped=(Skipped(Path("a/b.pt"), "pickle", "convert it"),),
    )
    found = find(run, made.profile, made={"parameters": 42})
    assert found.run["missing"] == [{"what": "batches", "cost": "no replay"}]
    assert found.run["skipped"] == [{"path": "a/b.pt", "reason": "pickle", "remedy": "convert it"}]
    assert found.run["parameters"] == 42
    assert found.run["path"] == "runs/planted"
    assert found.run["steps"] == [8, 296]
    assert found.run["logged_steps"] == [1, 300]


def test_nothing_at_all_cannot_be_judged() -> None:
    found = find(run_of(None, table()), pl.DataFrame())
    assert found.verdict["word"] == "Cannot say"
    assert found.spikes == found.alarms == found.relations == ()
    assert found.run["steps"] is None


def test_profile_without_a_log() -> None:
    made = relaxation(0, length=300)
    found = find(run_of(None, made.profile), made.profile)
    assert found.verdict["word"] == "Cannot say"
    assert "log" in found.verdict["sentence"]


def quiet_log(length: int = 200) -> pl.DataFrame:
    loss = 2 + 0.01 * np.random.default_rng(0).normal(size=length)
    return pl.DataFrame({"step": np.arange(1, length + 1), "loss": loss})


def test_stable_needs_checkpoints_and_a_finite_loss() -> None:
    calm = table(rows("hessian.stability_ratio", range(10, 200, 10), np.full(19, 0.2)))
    log = quiet_log()
    assert find(run_of(log, calm), calm).verdict["word"] == "Stable"
    few = calm.filter(pl.col("step") <= 20)
    assert find(run_of(log, few), few).verdict["word"] == "Cannot say"
    assert find(run_of(log, table()), table()).verdict["word"] == "Cannot say"
    sick = log.with_columns(
        pl.when(pl.col("step") > 150).then(float("nan")).otherwise(pl.col("loss")).alias("loss")
    )
    assert find(run_of(sick, calm), calm).verdict["word"] != "Stable"


def test_weights_that_are_not_finite_are_not_stable() -> None:
    steps = range(10, 200, 10)
    sick = table([
        *rows("hessian.stability_ratio", steps, np.full(19, 0.2)),
        *rows("weight.nonfinite", steps, [0.0] * 10 + [0.1] * 9, "head", 3),
    ])
    found = find(run_of(quiet_log(), sick), sick)
    assert found.verdict["word"] != "Stable"
    assert found.last_healthy_checkpoint == 100


def test_replay_checks_match_the_step_whose_rows_were_replayed() -> None:
    log = pl.DataFrame({"step": [150, 151, 152], "loss": [2.2749, 3.428152, 6.2772]})
    profile = table([
        Row(150, "", "model", -1, "replay.loss", 3.4281, batch="step 151"),
        Row(150, "", "model", -1, "replay.loss", 2.9, batch="replay"),
        Row(150, "", "model", -1, "replay.loss", 9.0, batch="step 152"),
        Row(151, "", "model", -1, "replay.loss", float("nan"), batch="step 152"),
        Row(152, "", "model", -1, "replay.loss", 1.0, batch="step 153"),
    ])
    checks = {(check.checkpoint, check.batch_step): check for check in replay_checks(profile, log)}
    assert set(checks) == {(150, 151), (150, 152), (151, 152)}
    assert checks[150, 151].agrees
    assert checks[150, 151].shift == 0
    assert not checks[150, 152].agrees
    assert checks[150, 152].shift == 1
    assert not checks[151, 152].agrees


def test_a_rate_that_ends_at_zero_does_not_hide_what_was_measured() -> None:
    ended = table(rows("hessian.stability_ratio", range(10, 200, 10), [*np.full(18, 0.2), 0.0]))
    sentence = find(run_of(quiet_log(), ended), ended).verdict["sentence"]
    assert "S was 0 at checkpoint 190, at most 0.2 (checkpoint 10)" in sentence
    assert "headroom" not in sentence


def test_a_caveat_about_sharpness_needs_s() -> None:
    made = relaxation()
    calm = made.log.with_columns(loss=2.0 + 0.01 * (pl.col("step") % 7))
    steps = made.profile["step"].unique().sort().to_numpy()
    without = table(rows("gradient.norm", steps, np.ones(steps.size)))
    told = find(run_of(calm, without), without).verdict
    assert told["word"] == "Stable" and "S was not measured" in told["sentence"]
    assert "sharpness" not in told["caveat"] and "not known" not in told["sentence"]
    low = table(rows("hessian.stability_ratio", steps, np.full(steps.size, 0.2)))
    assert "sharpness" in find(run_of(calm, low), low).verdict["caveat"]


def test_weights_that_are_not_finite_come_before_a_spike_that_passed() -> None:
    made = relaxation()
    assert find(run_of(made.log, made.profile), made.profile).verdict["word"] == "Spike"
    last = np.array([int(made.profile["step"].max())])  # type: ignore[arg-type]
    dead = pl.concat([made.profile, table(rows("weight.nonfinite", last, np.array([0.01])))])
    told = find(run_of(made.log, dead), dead).verdict
    assert told["word"] == "Diverged" and told["sentence"].startswith("Not finite: 1")
    assert f"checkpoint {last[0]}" in told["sentence"] and "loss spikes" in told["sentence"]
