"""What else can be odd about a series: counts, gaps, frozen tensors, restarts, histories; and what is not looked at."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hnf_offline.check import cheap_checks
from hnf_offline.check.examine import Examination
from hnf_offline.run import open_run
from tests.check.conftest import STEPS, folder_of
from tests.check.test_planted import EMBEDDING, edit_optimizer, put_rows, put_weights, rows_of, weights_of

Examined = Callable[..., Examination]


def found(done: Examination) -> list[tuple[str, str, int | None]]:
    return [(one.kind, one.severity, one.step) for one in done.faults]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_exchanged_names_of_two_checkpoints_are_noticed_by_the_weights_alone(
    data: st.DataObject, healthy: Path, tmp_path_factory: pytest.TempPathFactory, examined: Examined
) -> None:
    run = tmp_path_factory.mktemp("exchanged") / "run"
    shutil.copytree(healthy, run)
    for name in ("log.jsonl", "batches.safetensors"):
        (run / name).unlink()
    for step in STEPS:
        (folder_of(run, step) / "optimizer.safetensors").unlink()
    one, other = sorted(data.draw(st.lists(st.sampled_from(STEPS), min_size=2, max_size=2, unique=True)))
    folder_of(run, one).rename(run / "aside")
    folder_of(run, other).rename(run / "checkpoints" / f"step-{one:06d}")
    (run / "aside").rename(run / "checkpoints" / f"step-{other:06d}")
    done = examined(run)
    assert found(done) == [("discontinuity", "danger", one)]
    assert f"steps {one} and {other}" in done.faults[0].evidence


def test_exchanged_names_are_told_by_the_counts_inside(healthy: Path, examined: Examined) -> None:
    folder_of(healthy, 264).rename(healthy / "aside")
    folder_of(healthy, 372).rename(healthy / "checkpoints" / "step-000264")
    (healthy / "aside").rename(healthy / "checkpoints" / "step-000372")
    done = examined(healthy)
    assert found(done) == [("step-count", "danger", 264), ("step-count", "danger", 372)]
    assert "counts 372 steps, the name says 264" in done.faults[0].evidence


def test_a_trainer_state_of_another_step_is_cheap_to_see(trainer_run: Path) -> None:
    state = trainer_run / "checkpoint-300" / "trainer_state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"global_step": 336}))
    (fault,) = cheap_checks(open_run(trainer_run))
    assert (fault.kind, fault.severity, fault.step) == ("step-count", "danger", 300)
    assert fault.path == "checkpoint-300/trainer_state.json"


def test_a_healthy_trainer_run_has_no_cheap_fault(trainer_run: Path) -> None:
    assert cheap_checks(open_run(trainer_run)) == ()


def test_a_checkpoint_with_the_history_of_another_run_is_named(trainer_run: Path) -> None:
    state = trainer_run / "checkpoint-264" / "trainer_state.json"
    saved = json.loads(state.read_text())
    for row in saved["log_history"]:
        row["loss"] *= 1.3
    state.write_text(json.dumps(saved))
    (fault,) = cheap_checks(open_run(trainer_run))
    assert (fault.kind, fault.severity, fault.step) == ("mixed-runs", "danger", 264)


def test_another_tokenizer_is_named(trainer_run: Path) -> None:
    (trainer_run / "checkpoint-372" / "tokenizer.json").write_text('{"vocabulary": "abc"}')
    (fault,) = cheap_checks(open_run(trainer_run))
    assert (fault.kind, fault.severity, fault.step) == ("mixed-runs", "warning", 372)
    assert fault.path == "checkpoint-372/tokenizer.json"


@pytest.mark.parametrize(("key", "severity"), [("vocab_size", "danger"), ("embd_pdrop", "warning")])
def test_other_settings_are_told_by_what_they_change(key: str, severity: str, trainer_run: Path) -> None:
    config = trainer_run / "checkpoint-408" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {key: 5}))
    (fault,) = cheap_checks(open_run(trainer_run))
    assert (fault.kind, fault.severity, fault.step) == ("mixed-runs", severity, 408)


def test_settings_that_change_nothing_are_none(trainer_run: Path) -> None:
    config = trainer_run / "checkpoint-408" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"transformers_version": "6.0"}))
    assert cheap_checks(open_run(trainer_run)) == ()


def test_cheap_checks_find_whole_duplicates_without_reading_tensors(
    trainer_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(
        trainer_run / "checkpoint-300" / "model.safetensors",
        trainer_run / "checkpoint-336" / "model.safetensors",
    )
    run = open_run(trainer_run)
    monkeypatch.setattr("hnf_offline.run.formats.load_weights", lambda _: pytest.fail("read tensors"))
    (fault,) = cheap_checks(run)
    assert (fault.kind, fault.severity, fault.step) == ("identical-weights", "danger", 336)


def test_blocks_that_are_the_same_by_chance_are_compared_whole(trainer_run: Path) -> None:
    # All but one byte between the sampled blocks: a model of which a small part is trained.
    file = trainer_run / "checkpoint-336" / "model.safetensors"
    content = bytearray((trainer_run / "checkpoint-300" / "model.safetensors").read_bytes() + bytes(200_000))
    header = int.from_bytes(content[:8], "little")
    settings_ = json.loads(content[8 : 8 + header])
    del settings_
    for step in (300, 336):
        grown = {"big": torch.zeros(200_000), **weights_of(trainer_run, 300)}
        if step == 336:
            grown["big"][100_003] = 1.0
        put_weights(trainer_run, step, grown)
    assert file.stat().st_size > 800_000
    kinds = {fault.kind for fault in cheap_checks(open_run(trainer_run))}
    assert "identical-weights" not in kinds


def test_frozen_tensors_are_a_remark_and_no_duplicate(healthy: Path, examined: Examined) -> None:
    frozen = weights_of(healthy, 192)[EMBEDDING]
    for step in STEPS:
        put_weights(healthy, step, weights_of(healthy, step) | {EMBEDDING: frozen})
    (healthy / "batches.safetensors").unlink()
    done = examined(healthy)
    assert found(done) == [("untrained-weights", "info", None)]
    assert done.sound
    assert EMBEDDING in done.faults[0].evidence


def test_weights_at_a_rate_of_0_stand_still_without_fault(healthy: Path, examined: Examined) -> None:
    put_rows(
        healthy, [row | ({"learning_rate": 0.0} if row["step"] > 408 else {}) for row in rows_of(healthy)]
    )
    put_weights(healthy, 444, weights_of(healthy, 408))
    kinds = {one.kind for one in examined(healthy, last=444).faults}
    assert "identical-weights" not in kinds


def test_an_optimizer_that_was_started_afresh_is_a_remark(healthy: Path, examined: Examined) -> None:
    for step in STEPS[4:]:
        edit_optimizer(
            healthy, step, lambda saved, at=step: saved.update(step=dict.fromkeys(saved["step"], at - 320))
        )
    done = examined(healthy)
    assert found(done) == [("step-count", "info", None)]
    assert done.sound


def test_all_counts_off_by_one_are_one_warning(healthy: Path, examined: Examined) -> None:
    for step in STEPS:
        edit_optimizer(
            healthy, step, lambda saved, at=step: saved.update(step=dict.fromkeys(saved["step"], at + 1))
        )
    done = examined(healthy)
    assert found(done) == [("step-count", "warning", None)]
    assert "1 steps more than the name" in done.faults[0].evidence


def test_a_lost_checkpoint_is_a_remark_on_the_spacing(healthy: Path, examined: Examined) -> None:
    shutil.rmtree(folder_of(healthy, 300))
    done = examined(healthy)
    assert found(done) == [("spacing", "info", 336)]
    assert "264 to 336" in done.faults[0].evidence


def test_a_resume_in_the_log_is_a_remark(healthy: Path, examined: Examined) -> None:
    rows = rows_of(healthy)
    put_rows(
        healthy, [*rows[:320], *[row | {"loss": 1.01 * row["loss"]} for row in rows[310:320]], *rows[320:]]
    )
    done = examined(healthy)
    assert {(one.kind, one.severity) for one in done.faults} == {("log", "info")}
    assert done.sound


def test_nan_losses_at_the_end_are_no_fault_of_the_series(healthy: Path, examined: Examined) -> None:
    rows = rows_of(healthy)
    put_rows(healthy, [row | ({"loss": float("nan")} if row["step"] > 450 else {}) for row in rows])
    assert examined(healthy).sound


def test_what_was_not_looked_at_is_told_with_the_reason(healthy: Path, examined: Examined) -> None:
    (healthy / "batches.safetensors").unlink()
    for step in STEPS[:3]:
        (folder_of(healthy, step) / "optimizer.safetensors").unlink()
    done = examined(healthy)
    told = {one.name: one for one in done.checks}
    assert done.sound
    assert told["replayed-loss"].looked_at == ""
    assert told["replayed-loss"].skipped_because == "the run has no batches"
    assert told["optimizer-state"].looked_at == "5 optimizer states"
    assert told["optimizer-state"].skipped_because.startswith("3 of 8 checkpoints")


def test_steps_and_every_choose_what_is_looked_at(healthy: Path, examined: Examined) -> None:
    shutil.copy(folder_of(healthy, 300) / "model.safetensors", folder_of(healthy, 336) / "model.safetensors")
    assert not examined(healthy).sound
    assert examined(healthy, last=300).sound
    assert examined(healthy, first=336).checkpoints == 4
    assert examined(healthy, every=2).checkpoints == 4


def test_a_log_alone_is_checked_as_far_as_that_goes(healthy: Path, examined: Examined) -> None:
    done = examined(healthy / "log.jsonl")
    assert [one.name for one in done.checks if one.looked_at] == ["log"]
    assert done.sound


def test_every_check_says_what_it_looks_for() -> None:
    from hnf_offline.check.registry import COSTS, checks

    names = [one.name for one in checks()]
    assert len(names) == len(set(names)) == 17
    for one in checks():
        assert one.cost in COSTS
        assert one.looks_for
        assert one.matters.endswith(".")
        assert one.remedy
