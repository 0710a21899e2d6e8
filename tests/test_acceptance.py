"""The whole job on the sample runs and on an unmodified trainer's run: what a user would check by eye."""

from __future__ import annotations

from pathlib import Path

import pytest

from hnf_offline.detect.spikes import find_spikes
from hnf_offline.profile import ProfileSettings, profile_run
from hnf_offline.relate import find
from hnf_offline.report import write_report
from hnf_offline.run import open_run

ROOT = Path(__file__).parents[1]
TRAINER = ROOT.parent / "shared" / "data" / "runs" / "hf_trainer_llama_spike"


def analyse(path: Path, out: Path, **settings):
    """Whole-model curvature with one layer beside it: the verdict needs no more, and it takes a fifth of the time."""
    run = open_run(path)
    profile = profile_run(run, ProfileSettings(**settings), out)
    findings = find(run, profile.table)
    page = write_report(findings, run.log.rows, profile.table, out)
    return run, profile.table, findings, page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_spike_of_the_spiky_run_is_found_and_announced_in_time(tmp_path):
    run, _, findings, page = analyse(ROOT / "sample_runs" / "spiky", tmp_path, layers="lm_head")
    assert run.missing == ()
    assert [spike.onset for spike in findings.spikes] == [s.onset for s in find_spikes(run.log.rows)]
    assert len(findings.spikes) >= 4
    for spike in findings.spikes:
        rows = run.log.rows.filter(
            (run.log.rows["step"] >= spike.onset) & (run.log.rows["step"] <= spike.peak)
        )
        assert rows["loss"].max() > 2 * spike.loss_before
    early = [
        spike
        for spike in findings.spikes
        if any(
            alarm.rule in {"edge", "forecast"} and 10 <= spike.onset - alarm.known_at <= 80
            for alarm in findings.alarms
        )
    ]
    assert len(early) >= 0.8 * len(findings.spikes)
    ours = next(one for one in findings.relations if one.rule == "stability alarm")
    rival = next(one for one in findings.relations if one.rule == "gradient norm z > 2")
    assert ours.early_recall >= 0.8 > rival.early_recall
    assert ours.early_chance is not None and rival.early_chance is not None
    assert findings.verdict["word"] == "Spike"
    assert "chance" in page and "gradient norm z &gt; 2" in page
    assert any("learning rate for good" in advice.action for advice in findings.advice)


@pytest.mark.slow
def test_the_steady_run_is_stable_and_nothing_warns(tmp_path):
    _, _, findings, page = analyse(ROOT / "sample_runs" / "steady", tmp_path, layers="lm_head")
    assert findings.spikes == ()
    assert findings.verdict["word"] == "Stable"
    warned = [alarm for alarm in findings.alarms if alarm.severity != "info"]
    assert len(warned) <= 1
    assert all(alarm.rule in {"edge", "forecast"} for alarm in warned)
    assert "● Stable" in page


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.real
@pytest.mark.skipif(not TRAINER.is_dir(), reason="needs ../shared/data")
def test_an_unmodified_trainer_run_needs_no_options_and_its_two_spikes_are_explained(tmp_path):
    run, table, findings, page = analyse(
        TRAINER, tmp_path, first_step=130, last_step=230, layers="model.embed_tokens"
    )
    assert len(run.checkpoints) == 30
    assert sum(bool(checkpoint.optimizer_files) for checkpoint in run.checkpoints) == 13
    assert run.model.kind == "hf" and run.batches.rows_per_step == 16
    assert [spike.onset for spike in findings.spikes] == [151, 220]
    assert findings.spikes[0].peak == 152
    assert findings.spikes[0].loss_peak == pytest.approx(6.277, abs=1e-3)
    of_140 = table.filter(
        (table["step"] == 140) & (table["layer"] == "") & (table["quantity"] == "hessian.stability_ratio")
    )
    assert 0.5 < of_140["value"].item() < 0.7
    first, second = findings.stories
    assert (first.cause, second.cause) == ("learning-rate", "bad-batch")
    assert first.known_at == 150
    told = next(advice for advice in findings.advice if advice.spike == 1)
    assert 0.0075 < told.numbers["largest_stable_learning_rate"] < 0.0095
    assert findings.last_healthy_checkpoint is not None
    check = next(check for check in findings.replay_checks if check.checkpoint == 150)
    assert (check.batch_step, check.agrees) == (151, True)
    assert check.replayed == pytest.approx(3.428152, abs=1e-3)
    assert all(check.agrees and check.shift == 0 for check in findings.replay_checks)
    assert "3.4282" in page


def pathologies_of(path: Path, out: Path, **settings):
    run = open_run(path)
    table = profile_run(run, ProfileSettings(device="cpu", **settings), out).table
    return table, find(run, table).pathologies


@pytest.mark.parametrize(
    ("name", "tier"), [("steady", "forward"), ("steady", "gradient"), ("spiky", "gradient")]
)
def test_nothing_is_wrong_inside_the_sample_runs(name, tier, tmp_path):
    """The spiky run's trouble is its edge: no head, unit, rank or logit of it is sick."""
    table, found = pathologies_of(ROOT / "sample_runs" / name, tmp_path, tier=tier, every=4)
    assert found == ()
    measured = {"weight.effective_rank", "activation.variance", "logits.log_z"}
    measured |= {"gradient.norm", "adam.epsilon_share"} if tier == "gradient" else set()
    assert measured <= set(table["quantity"]), "what was looked at"


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(not TRAINER.is_dir(), reason="needs ../shared/data")
def test_what_is_sick_in_the_trainers_run_became_so_where_its_rate_was_raised(tmp_path):
    _, found = pathologies_of(TRAINER, tmp_path, tier="forward", rows=16)
    assert found, "the rate was ten times as high at steps 150 to 152"
    assert {one.step for one in found} == {160}
    (head,) = [one for one in found if one.kind == "attention-entropy-collapse"]
    assert head.layer == "model.layers.3.self_attn.softmax" and "(head 2)" in head.evidence
    assert {one.kind for one in found} == {"attention-entropy-collapse", "dead-units"}
    assert all(one.action for one in found)
