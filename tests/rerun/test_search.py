"""Readings of a run: planted lies about steps, rates, clipping and precision are found, and named."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from hnf_offline.retraining import CLOSE, EXACT, Reproduction

Record = Callable[..., Path]
Verdict = Callable[..., Reproduction]


def warmup(step: int) -> float:
    return 1e-4 * step


def wave(step: int) -> float:
    return 3e-3 * (1 + 0.5 * math.sin(step))


OPTIMIZERS = {
    "adam": {"optimizer": torch.optim.Adam, "weight_decay": 0.1},
    "adamw": {"optimizer": torch.optim.AdamW, "weight_decay": 0.1, "betas": (0.9, 0.95)},
    "amsgrad": {"optimizer": torch.optim.AdamW, "amsgrad": True},
    "sgd": {"optimizer": torch.optim.SGD, "rate": lambda step: 0.3},
    "momentum": {"optimizer": torch.optim.SGD, "rate": lambda step: 0.1, "momentum": 0.9, "dampening": 0.1},
    "nesterov": {"optimizer": torch.optim.SGD, "rate": lambda step: 0.1, "momentum": 0.9, "nesterov": True},
    "two groups": {"ratios": lambda name: 0.1 if "wte" in name else 1.0, "rate": warmup},
    "the first group slower": {"ratios": lambda name: 1.0 if "wte" in name else 4.0},
    "warm-up": {"rate": warmup},
    "a rate that swings": {"rate": wave},
    "labels": {"labels": lambda tokens: torch.where(tokens < 3, -100, tokens)},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_as_recorded_is_exact_without_searching(record: Record, verdict: Verdict, name: str) -> None:
    found = verdict(record(**OPTIMIZERS[name]))
    assert (found.word, found.found, found.losses) == (EXACT, (), 20), found.because
    assert found.loss_difference is not None and found.loss_difference < 1e-6
    assert [check.step for check in found.weights] == [20, 30]
    assert all(check.difference <= 1e-6 and check.travelled > 1e-4 for check in found.weights)


def test_a_run_in_float64_is_exact_in_both_precisions(record: Record, verdict: Verdict) -> None:
    path = record(dtype=torch.float64)
    twice = [verdict(path, dtype=dtype) for dtype in ("float32", "float64")]
    assert [one.word for one in twice] == [EXACT, EXACT]
    assert twice[1].loss_difference is not None and twice[1].loss_difference < 1e-6
    assert max(check.share for check in twice[1].weights) < 1e-9 < twice[0].weights[0].share


@pytest.mark.parametrize(("by", "said"), [(1, "later"), (-1, "earlier")])
@pytest.mark.parametrize("rate", [warmup, wave])
def test_rates_logged_a_step_off_are_found(
    record: Record, plant: SimpleNamespace, verdict: Verdict, by: int, said: str, rate: Callable[[int], float]
) -> None:
    path = record(rate=rate)
    plant.shift_column(path, "learning_rate", by)
    found = verdict(path)
    assert (found.word, found.found) == (EXACT, (f"learning rate logged at 1 step {said}",)), found.because


def test_of_a_constant_rate_no_shift_is_claimed(
    record: Record, plant: SimpleNamespace, verdict: Verdict
) -> None:
    path = record()
    plant.shift_column(path, "learning_rate", 1)
    found = verdict(path)
    assert (found.word, found.found) == (EXACT, ())


@pytest.mark.parametrize("by", [1, -1, 2])
def test_batches_numbered_off_are_found(
    record: Record, plant: SimpleNamespace, verdict: Verdict, by: int
) -> None:
    path = record(rate=wave)
    plant.shift_batches(path, by)
    found = verdict(path)
    said = f"batch of {abs(by)} step{'s' if abs(by) > 1 else ''} {'later' if by > 0 else 'earlier'}"
    assert (found.word, found.found) == (EXACT, (said,)), found.because


@pytest.mark.parametrize(("by", "said"), [(1, "later"), (-1, "earlier")])
def test_losses_logged_a_step_off_are_found(
    record: Record, plant: SimpleNamespace, verdict: Verdict, by: int, said: str
) -> None:
    path = record(rate=wave)
    plant.shift_column(path, "loss", by)
    found = verdict(path)
    assert (found.word, found.found) == (EXACT, (f"loss logged at 1 step {said}",)), found.because


@pytest.mark.parametrize("by", [1, -1])
@pytest.mark.parametrize("rate", [warmup, lambda step: 3e-3])
def test_checkpoints_named_a_step_off_are_found(
    record: Record, plant: SimpleNamespace, verdict: Verdict, by: int, rate: Callable[[int], float]
) -> None:
    path = record(rate=rate)
    plant.shift_checkpoints(path, by)
    found = verdict(path, 10 + by, 30 + by)
    said = "1 step earlier" if by > 0 else "1 step later"
    assert found.word == EXACT, found.because
    assert {f"batch of {said}", f"loss logged at {said}"} <= set(found.found)


@pytest.mark.parametrize("by", [1, -1])
def test_batches_numbered_off_are_found_where_only_every_fifth_loss_is_logged(
    record: Record, plant: SimpleNamespace, verdict: Verdict, by: int
) -> None:
    path = record(rate=warmup)
    plant.shift_batches(path, by)
    plant.log(path, lambda lines: [line for line in lines if line["step"] % 5 == 0])
    found = verdict(path)
    said = f"batch of 1 step {'later' if by > 0 else 'earlier'}"
    assert (found.word, found.found, found.losses) == (EXACT, (said,), 4), found.because


def test_an_unknown_clipping_is_found(record: Record, verdict: Verdict) -> None:
    found = verdict(record(clip=0.5))
    assert (found.word, found.found) == (EXACT, ("gradient norm clipped at 0.5",)), found.because


def test_a_clipping_that_is_said_is_not_searched_for(record: Record, verdict: Verdict) -> None:
    path = record(clip=0.3)
    (path / "run.toml").write_text("[optimizer]\nmax_grad_norm = 0.3\n")
    found = verdict(path)
    assert (found.word, found.found) == (EXACT, ())
    assert "gradient norm clipped at 0.3" in found.assumed


def test_a_wrong_clipping_in_run_toml_is_not_talked_away(record: Record, verdict: Verdict) -> None:
    path = record(clip=0.5)
    (path / "run.toml").write_text("[optimizer]\nmax_grad_norm = 5.0\n")
    assert verdict(path).word != EXACT


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_is_told_from_adamw(
    record: Record, plant: SimpleNamespace, verdict: Verdict, optimizer: type[torch.optim.Optimizer]
) -> None:
    path = record(optimizer=optimizer, weight_decay=0.1)

    def strip(said: dict[str, object]) -> None:
        said.pop("kind")
        for group in said["param_groups"]:  # type: ignore[attr-defined]
            group.pop("decoupled_weight_decay", None)

    plant.optimizers(path, strip)
    found = verdict(path)
    assert found.word == EXACT, found.because
    assert f"{optimizer.__name__} with its saved state" in found.assumed
    assert found.found == (("Adam with its saved state",) if optimizer is torch.optim.Adam else ())


def unequal(tokens: Tensor) -> Tensor:
    """Labels of which the second half of each batch has few."""
    labels = tokens.clone()
    labels[torch.arange(len(tokens)) % 6 >= 3, 3:] = -100
    return labels


def test_accumulation_with_unequal_counts_is_found(record: Record, verdict: Verdict) -> None:
    found = verdict(record(accumulation=2, labels=unequal))
    assert (found.word, found.found) == (EXACT, ("mean over 2 micro-batches",)), found.because


def test_bfloat16_is_found(record: Record, verdict: Verdict) -> None:
    found = verdict(record(autocast=torch.bfloat16))
    assert (found.word, found.found) == (EXACT, ("bfloat16 autocast",)), found.because


def test_bfloat16_that_is_said_is_not_searched_for(record: Record, verdict: Verdict) -> None:
    found = verdict(record(autocast=torch.bfloat16, training={"bf16": True}))
    assert (found.word, found.found) == (EXACT, ())


def test_losses_averaged_over_logging_steps_are_found(
    record: Record, plant: SimpleNamespace, verdict: Verdict
) -> None:
    def averaged(lines: list[dict[str, float]]) -> list[dict[str, float]]:
        return [
            line | {"loss": sum(one["loss"] for one in lines[place - 4 : place + 1]) / 5}
            for place, line in enumerate(lines)
            if line["step"] % 5 == 0
        ]

    path = record()
    plant.log(path, averaged)
    found = verdict(path)
    assert (found.word, found.found, found.losses) == (
        EXACT,
        ("loss logged at the same step as the mean of 5 steps",),
        4,
    )


def test_two_lies_at_once_are_found(record: Record, plant: SimpleNamespace, verdict: Verdict) -> None:
    path = record(rate=wave, clip=0.5)
    plant.shift_batches(path, 1)
    found = verdict(path)
    assert found.word == EXACT, found.because
    assert set(found.found) == {"batch of 1 step later", "gradient norm clipped at 0.5"}


def test_rates_wrong_by_a_factor_give_way_to_the_saved_one(
    record: Record, plant: SimpleNamespace, verdict: Verdict
) -> None:
    path = record()
    plant.log(path, lambda lines: [line | {"learning_rate": 2 * line["learning_rate"]} for line in lines])
    found = verdict(path)
    assert (found.word, found.found) == (EXACT, ("learning rate of the saved state",)), found.because


def test_losses_off_by_little_are_close_at_most(
    record: Record, plant: SimpleNamespace, verdict: Verdict
) -> None:
    path = record()
    plant.log(path, lambda lines: [line | {"loss": line["loss"] * (1 + 1e-3)} for line in lines])
    assert verdict(path).word == CLOSE
