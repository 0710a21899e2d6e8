"""Verdicts: a replay that is not the run is never called exact, and what stands in the way is said."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from shutil import copy
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hnf_offline.errors import InputError
from hnf_offline.retraining import CLOSE, EXACT, NOT_REPRODUCIBLE, Reproduction

Record = Callable[..., Path]
Verdict = Callable[..., Reproduction]
Lines = list[dict[str, float]]


@pytest.mark.parametrize("stop", [13, 30])
def test_dropout_without_random_states_is_not_the_run(
    record_dropout: Record, verdict: Verdict, stop: int
) -> None:
    found = verdict(
        record_dropout(), 10, stop
    )  # up to 13 the losses are within 2 %, as those of any such run
    assert found.word == NOT_REPRODUCIBLE
    assert "dropout (0.1)" in found.because
    assert "random states" in found.because


def test_dropout_with_random_states_is_exact(record_dropout: Record, verdict: Verdict) -> None:
    found = verdict(record_dropout(random_states=True))
    assert (found.word, found.found) == (EXACT, ()), found.because
    assert "dropout on" in found.assumed


@pytest.mark.parametrize(("lost", "exact"), [(11, False), (15, True)])
def test_random_states_go_on_from_the_step_before(
    record_dropout: Record, verdict: Verdict, lost: int, exact: bool
) -> None:
    path = record_dropout(random_states=True)
    file = path / "random_states.safetensors"
    kept = {name: rows[torch.arange(1, 41) != lost].contiguous() for name, rows in load_file(file).items()}
    save_file(kept, file)
    assert (verdict(path).word == EXACT) is exact


def test_a_checkpoint_without_optimizer_state_is_not_the_run(
    record: Record, plant: SimpleNamespace, verdict: Verdict
) -> None:
    path = record()
    plant.drop_state(path, 10)
    found = verdict(path)
    assert found.word == NOT_REPRODUCIBLE
    assert "checkpoint 10 has no optimizer state; checkpoint 20 has one" in found.because


def test_no_optimizer_state_at_all_is_refused(
    record: Record, plant: SimpleNamespace, verdict: Verdict
) -> None:
    path = record()
    plant.drop_state(path, 10, 20, 30, 40)
    with pytest.raises(InputError, match="no checkpoint has an optimizer state"):
        verdict(path)


def test_momentum_said_to_be_none_is_not_exact(
    record: Record, plant: SimpleNamespace, verdict: Verdict
) -> None:
    path = record(optimizer=torch.optim.SGD, rate=lambda step: 0.1, momentum=0.9)
    plant.drop_state(path, 10)
    (path / "run.toml").write_text('[optimizer]\nkind = "sgd"\nlr = 0.1\n')
    assert verdict(path).word != EXACT


def test_plain_sgd_needs_no_saved_state(record: Record, plant: SimpleNamespace, verdict: Verdict) -> None:
    path = record(optimizer=torch.optim.SGD, rate=lambda step: 0.3)
    plant.drop_state(path, 10, 20, 30, 40)
    (path / "run.toml").write_text('[optimizer]\nkind = "sgd"\nlr = 0.3\n')
    assert verdict(path).word == EXACT


def shuffled(rows: dict[str, Tensor], within: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    if within:
        order = torch.cat([6 * step + torch.randperm(6, generator=generator) for step in range(40)])
    else:
        order = torch.randperm(240, generator=generator)
    return rows | {"input_ids": rows["input_ids"][order].contiguous()}


def test_rows_shuffled_across_steps_are_not_the_run(
    record: Record, plant: SimpleNamespace, verdict: Verdict
) -> None:
    path = record()
    plant.batches(path, lambda rows: shuffled(rows, within=False))
    found = verdict(path)
    assert found.word != EXACT
    assert found.found == ()
    assert "already the loss of step 11" in found.because or found.word == CLOSE


def test_rows_shuffled_within_their_batch_are_the_run(
    record: Record, plant: SimpleNamespace, verdict: Verdict
) -> None:
    path = record()
    plant.batches(path, lambda rows: shuffled(rows, within=True))
    found = verdict(path)
    assert (found.word, found.found) == (EXACT, ()), found.because
    assert found.weights[0].difference > 0  # other rounding: nothing was copied


@pytest.mark.parametrize("factor", [2.0, 1.1])
def test_a_wrong_schedule_in_the_log_is_not_exact(
    record: Record, plant: SimpleNamespace, verdict: Verdict, factor: float
) -> None:
    path = record(rate=lambda step: 1e-4 * step)
    plant.log(
        path, lambda lines: [line | {"learning_rate": factor * line["learning_rate"]} for line in lines]
    )
    assert verdict(path).word != EXACT


def test_one_rate_wrong_by_three_percent_is_not_exact(
    record: Record, plant: SimpleNamespace, verdict: Verdict
) -> None:
    def change(lines: Lines) -> Lines:
        lines[14]["learning_rate"] *= 1.03
        return lines

    path = record(rate=lambda step: 3e-3 + 1e-4 * step)
    plant.log(path, change)
    found = verdict(path)
    assert found.word == CLOSE, found.because
    assert found.weights[0].share > 1e-3


@pytest.mark.parametrize(
    "said", ["betas = [0.8, 0.999]", "betas = [0.9, 0.9]", "weight_decay = 0.5", "eps = 1e-3"]
)
def test_a_wrong_optimizer_in_run_toml_is_not_exact(record: Record, verdict: Verdict, said: str) -> None:
    path = record()
    (path / "run.toml").write_text(f"[optimizer]\n{said}\n")
    assert verdict(path).word != EXACT


def test_the_log_of_another_run_is_not_exact(record: Record, verdict: Verdict) -> None:
    path, other = record(), record(seed=1)
    copy(other / "log.jsonl", path / "log.jsonl")
    found = verdict(path)
    assert found.word != EXACT
    assert found.first_mismatch == 11


@pytest.mark.parametrize("at", [20, 30])
def test_weights_of_another_step_are_not_exact(record: Record, verdict: Verdict, at: int) -> None:
    path = record()
    folder = path / "checkpoints"
    copy(folder / "step-000040" / "model.safetensors", folder / f"step-0000{at}" / "model.safetensors")
    found = verdict(path)
    assert found.word == NOT_REPRODUCIBLE
    assert f"weights of checkpoint {at} differ" in found.because


def test_starting_at_weights_of_another_step_is_not_exact(record: Record, verdict: Verdict) -> None:
    path = record()
    folder = path / "checkpoints"
    copy(folder / "step-000030" / "model.safetensors", folder / "step-000010" / "model.safetensors")
    assert verdict(path).word != EXACT


def test_losses_that_hardly_change_prove_nothing(record: Record, verdict: Verdict) -> None:
    path = record(rate=lambda step: 1e-8)
    found = verdict(path, 10, 18)
    assert (found.word, found.weights, found.losses) == (CLOSE, (), 8)
    assert "likely, not shown" in found.because
    assert verdict(path, 10, 20).word == EXACT  # the next checkpoint shows it


def test_losses_alone_can_prove_it(record: Record, verdict: Verdict) -> None:
    found = verdict(record(), 10, 18)
    assert (found.word, found.weights, found.losses) == (EXACT, (), 8)


def test_one_step_proves_nothing(record: Record, verdict: Verdict) -> None:
    assert verdict(record(), 10, 11).word == CLOSE


def test_without_a_log_the_checkpoints_decide(record: Record, verdict: Verdict) -> None:
    path = record()
    (path / "log.jsonl").unlink()
    found = verdict(path)
    assert (found.word, found.losses, found.loss_difference) == (EXACT, 0, None)
    assert "learning rate of the saved state" in found.assumed
    alone = verdict(path, 10, 18)
    assert alone.word == NOT_REPRODUCIBLE
    assert "nothing can be compared" in alone.because


def test_a_log_without_rates_of_a_changing_rate_is_not_exact(
    record: Record, plant: SimpleNamespace, verdict: Verdict
) -> None:
    def without(lines: Lines) -> Lines:
        return [{key: value for key, value in line.items() if key != "learning_rate"} for line in lines]

    constant, changing = record(), record(rate=lambda step: 1e-4 * step)
    for path in (constant, changing):
        plant.log(path, without)
    assert verdict(constant).word == EXACT
    assert verdict(changing).word != EXACT


def diverging(step: int) -> float:
    return math.inf if step == 15 else 3e-3


def test_nan_on_both_sides_is_agreement(record: Record, verdict: Verdict) -> None:
    found = verdict(record(rate=diverging))
    assert (found.word, found.losses, found.first_mismatch) == (EXACT, 20, None), found.because


def test_nan_on_one_side_is_not(record: Record, plant: SimpleNamespace, verdict: Verdict) -> None:
    path = record()

    def change(lines: Lines) -> Lines:
        lines[17]["loss"] = math.nan
        return lines

    plant.log(path, change)
    found = verdict(path)
    assert (found.word, found.first_mismatch) == (NOT_REPRODUCIBLE, 18)


def test_nothing_but_nan_proves_nothing(record: Record, verdict: Verdict) -> None:
    found = verdict(record(rate=diverging), 20, 40)
    assert found.word != EXACT, found.because


@pytest.mark.parametrize("replaced", [False, True])
def test_a_nan_that_nothing_uses_hides_no_other_difference(
    record_dropout: Record, verdict: Verdict, replaced: bool
) -> None:
    path = record_dropout("without")
    files = {
        step: path / "checkpoints" / f"step-0000{step}" / "model.safetensors" for step in (10, 20, 30, 40)
    }
    if replaced:
        copy(files[40], files[30])
    for file in files.values():
        weights = load_file(file)
        weights["embed.weight"][19] = math.nan
        save_file(weights, file)
    found = verdict(path)
    assert found.losses == 20
    assert (found.word == EXACT) is not replaced, found


def test_the_same_verdict_twice(record: Record, plant: SimpleNamespace, verdict: Verdict) -> None:
    path = record()
    plant.batches(path, lambda rows: shuffled(rows, within=False))
    assert verdict(path) == verdict(path)


def test_the_same_verdict_twice_with_dropout(record_dropout: Record, verdict: Verdict) -> None:
    path = record_dropout()
    assert verdict(path) == verdict(path)


@pytest.mark.parametrize(("decimals", "wrong"), [(1, "betas = [0.8, 0.999]"), (3, "weight_decay = 0.5")])
def test_a_log_of_few_digits_proves_no_more_than_it_holds(
    record: Record, plant: SimpleNamespace, verdict: Verdict, decimals: int, wrong: str
) -> None:
    path = record()
    plant.log(path, lambda lines: [line | {"loss": round(line["loss"], decimals)} for line in lines])
    assert verdict(path).word == EXACT  # the checkpoints show it
    (path / "run.toml").write_text(f"[optimizer]\n{wrong}\n")
    assert verdict(path, 10, 19).word == CLOSE
