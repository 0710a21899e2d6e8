"""Replayed losses tell how a log counts."""

from __future__ import annotations

import math
import random

import pytest

from hnf_offline.check.replay import log_shift
from hnf_offline.check.replayed_loss import look
from hnf_offline.check.series import Replays, Series
from hnf_offline.run.records import Checkpoint, Log, Run

STEPS = (10, 20, 30, 40, 50)


def truth(seed: int = 0) -> dict[int, float]:
    """Loss of update s on its own batch."""
    draw = random.Random(seed)
    return {step: 2 + draw.random() for step in range(1, 61)}


def replays(own: dict[int, float], batch_shift: int = 0) -> dict[tuple[int, int], float]:
    """Checkpoints on three batches: on that of their next update they give its loss, on others some other."""
    draw = random.Random(1)
    return {
        (step, batch): own[step + 1] if batch + batch_shift == step + 1 else 2 + draw.random()
        for step in STEPS
        for batch in (step, step + 1, step + 2)
    }


def series(losses: dict[tuple[int, int], float], logged: dict[int, float], tmp_path) -> Series:
    import polars as pl

    rows = pl.DataFrame({"step": list(logged), "loss": list(logged.values())})
    points = tuple(Checkpoint(step, tmp_path / f"step-{step}", "hf_trainer", ()) for step in STEPS)
    run = Run(tmp_path, "run", points, Log(rows, (tmp_path / "log.jsonl",)), None, None)
    return Series(run, replays=Replays(losses))


@pytest.mark.parametrize("shift", [0, 1, -1])
@pytest.mark.parametrize("batches_follow_the_log", [False, True])
def test_the_shift_of_a_log_is_found(shift: int, batches_follow_the_log: bool) -> None:
    own = truth()
    logged = {step - shift: loss for step, loss in own.items()}
    assert log_shift(replays(own, shift if batches_follow_the_log else 0), logged) == shift


def test_a_single_checkpoint_tells_nothing() -> None:
    own = truth()
    losses = {pair: loss for pair, loss in replays(own).items() if pair[0] == 30}
    assert log_shift(losses, own) is None


def test_a_log_of_another_run_tells_nothing() -> None:
    assert log_shift(replays(truth()), truth(seed=5)) is None


def test_a_loss_that_never_changes_tells_nothing() -> None:
    flat = dict.fromkeys(range(1, 61), 2.0)
    assert log_shift({(step, step + 1): 2.0 for step in STEPS}, flat) is None


def test_one_wrong_checkpoint_does_not_hide_the_shift() -> None:
    own = truth()
    losses = replays(own) | {(30, batch): 9.0 for batch in (30, 31, 32)}
    assert log_shift(losses, {step - 1: loss for step, loss in own.items()}) == 1


def test_nan_is_a_loss_like_any_other() -> None:
    own = truth() | {41: math.nan, 51: math.nan}
    assert log_shift(replays(own), own) == 0


def test_rows_shifted_by_one_step_are_named(tmp_path) -> None:
    own = truth()
    (fault,) = look(series(replays(own, batch_shift=-1), own, tmp_path)).faults
    assert "the batch one step later" in fault.evidence
    assert fault.severity == "warning"


def test_a_checkpoint_that_alone_disagrees_is_named(tmp_path) -> None:
    own = truth()
    losses = replays(own) | {(30, batch): 9.0 for batch in (30, 31, 32)}
    (fault,) = look(series(losses, own, tmp_path)).faults
    assert (fault.step, fault.severity) == (30, "danger")


def test_small_differences_everywhere_are_put_down_to_precision(tmp_path) -> None:
    own = truth()
    losses = {pair: 1.01 * loss for pair, loss in replays(own).items()}
    (fault,) = look(series(losses, own, tmp_path)).faults
    assert fault.severity == "warning"
    assert "lower precision" in fault.remedy


def test_means_over_several_steps_are_not_held_against_the_run(tmp_path) -> None:
    own = {step: loss for step, loss in truth().items() if step % 10 == 1}
    losses = {(step, step + 1): 9.0 for step in STEPS}
    outcome = look(series(losses, own, tmp_path))
    assert outcome.faults == ()
    assert outcome.looked_at == ""
    assert "means over several" in outcome.skipped_because


def test_a_run_that_agrees_is_left_alone(tmp_path) -> None:
    own = truth()
    outcome = look(series({(step, step + 1): own[step + 1] for step in STEPS}, own, tmp_path))
    assert outcome.faults == ()
    assert outcome.looked_at.startswith("5 checkpoints")
