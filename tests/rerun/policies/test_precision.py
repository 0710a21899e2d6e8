"""Precision: autocast as asked, torch's gradient scaler, and nothing at all where the run has that format already."""

from __future__ import annotations

import pytest
import torch

from hnf_offline.errors import UsageError
from hnf_offline.rerun.policies.registry import make_policies
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.start import Start


def losses(start: Start, spelling: str | None, steps: int = 8) -> list[float]:
    policies = make_policies(spelling) if spelling else ()
    training = start.training(Recipe(start.kinds[0]), policies)
    taken = [float(training.advance().loss) for _ in range(steps)]  # type: ignore[arg-type]
    training.end()
    return taken


def test_float32_on_a_float32_run_changes_not_one_bit(start: Start) -> None:
    assert losses(start, "precision=fp32") == losses(start, None)


@pytest.mark.parametrize(("spelling", "nearer_than"), [("precision=bf16", 3e-2), ("precision=fp16", 3e-3)])
def test_a_shorter_format_rounds_and_trains_alike(start: Start, spelling: str, nearer_than: float) -> None:
    was, now = losses(start, None), losses(start, spelling)
    assert was != now
    assert now == pytest.approx(was, abs=nearer_than)


def test_the_shorter_the_mantissa_the_larger_the_difference(start: Start) -> None:
    was = torch.tensor(losses(start, None))
    bfloat16 = (torch.tensor(losses(start, "precision=bf16")) - was).abs().mean()
    float16 = (torch.tensor(losses(start, "precision=fp16")) - was).abs().mean()
    assert 0 < float16 < bfloat16


def test_a_training_after_it_is_as_was(start: Start) -> None:
    was = losses(start, None)
    losses(start, "precision=fp16")
    assert losses(start, None) == was


def test_float16_brings_torchs_own_scaler(start: Start) -> None:
    training = start.training(Recipe(start.kinds[0]), make_policies("precision=fp16"))
    defaults = torch.amp.GradScaler("cpu")
    assert training.scaler is not None
    assert training.scaler.state_dict() == defaults.state_dict()


@pytest.mark.parametrize(
    "spelling", ["precision=bf16+scaler=1024,1.5,200", "scaler=1024,1.5,200+precision=fp32"]
)
def test_a_scaler_without_float16_is_refused(start: Start, spelling: str) -> None:
    with pytest.raises(UsageError, match="cannot act together; a gradient scaler needs precision=fp16"):
        start.training(Recipe(start.kinds[0]), make_policies(spelling))


@pytest.mark.parametrize("spelling", ["precision", "precision=", "precision=fp8", "precision=bf16,fp16"])
def test_another_format_is_refused_with_the_ones_there_are(spelling: str) -> None:
    with pytest.raises(UsageError, match="write precision=bf16"):
        make_policies(spelling)
