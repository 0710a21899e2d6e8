"""Policies that are a function of the learning rate and the clock alone: every rate by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from hnf_offline.errors import UsageError
from hnf_offline.rerun.policies.registry import make_policies
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.start import Start
from hnf_offline.rerun.training import Training

Toy = Callable[..., Training]


def rates_of(training: Training, steps: int) -> list[float]:
    taken = [training.advance().learning_rate for _ in range(steps)]
    return [rate for rate in taken if rate is not None]


def test_a_cap_takes_the_smaller_rate_of_every_step(toy: Toy) -> None:
    assert rates_of(toy("lr-cap=0.2", rates=[0.1, 0.2, 0.3, 0.4]), 4) == [0.1, 0.2, 0.2, 0.2]


def test_a_cap_far_above_the_rate_leaves_the_run_bitwise_as_it_was(start: Start) -> None:
    def weights(*spelling: str) -> list[torch.Tensor]:
        policies = [policy for one in spelling for policy in make_policies(one)]
        training = start.training(Recipe(start.kinds[0]), policies)
        for _ in range(6):
            training.advance()
        return [parameter.detach().clone() for parameter in training.parameters]

    assert all(torch.equal(a, b) for a, b in zip(weights(), weights("lr-cap=1e3"), strict=True))


def test_a_capped_sgd_step_is_the_cap_times_the_gradient(toy: Toy) -> None:
    gradients = torch.tensor([[0.0] * 4, [1.0, 2.0, 3.0, 4.0]])
    training = toy("lr-cap=0.01", rate=5.0, gradients=gradients)
    training.advance()
    assert training.parameters[0].tolist() == pytest.approx([0.99, 0.98])
    assert training.parameters[1].tolist() == pytest.approx([0.97, 0.96])


def test_a_constant_rate_ignores_the_schedule_and_keeps_the_groups_ratios(toy: Toy) -> None:
    training = toy("lr-constant=0.5", rates=[0.1, 0.2, 0.3], groups=[{}, {"rate_ratio": 0.1}])
    assert rates_of(training, 3) == [0.5, 0.5, 0.5]
    assert [group["lr"] for group in training.optimizer.param_groups] == [0.5, pytest.approx(0.05)]


def test_a_scale_lasts_or_is_restored_after_its_steps(toy: Toy) -> None:
    assert rates_of(toy("lr-scale=0.5", start=3), 6) == [0.05] * 6
    assert rates_of(toy("lr-scale=.5:4", start=3), 6) == [0.05] * 4 + [0.1] * 2


def test_a_decay_falls_at_once_then_by_the_clock_down_to_its_floor(toy: Toy) -> None:
    got = rates_of(toy("lr-decay=0.5,2,0.2", start=5), 7)
    assert got == pytest.approx([0.05, 0.05, 0.025, 0.025, 0.02, 0.02, 0.02])


def test_the_default_decay_is_that_of_the_study(toy: Toy) -> None:
    training = toy("lr-decay", start=1)
    share = [training.learning_rate_of(2 + k) / 0.1 for k in (0, 59, 60, 120, 180, 240, 600)]
    assert share == pytest.approx([0.7, 0.7, 0.49, 0.343, 0.2401, 0.2, 0.2])


def test_a_cosine_is_torchs_and_stays_at_its_floor(toy: Toy) -> None:
    got = rates_of(toy("lr-cosine=8,0.1", start=2), 12)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8, eta_min=0.01)
    expected = []
    for _ in range(9):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert got == pytest.approx([*expected, 0.01, 0.01, 0.01])
    assert rates_of(toy("lr-cosine=4"), 5)[-1] == pytest.approx(0.0, abs=1e-12)
    assert rates_of(toy("lr-cosine=4"), 3)[2] == pytest.approx(0.1 * (1 + math.cos(math.pi / 2)) / 2)


def test_a_warm_up_rises_linearly_from_its_first_share(toy: Toy) -> None:
    assert rates_of(toy("lr-warmup=4", start=9), 6) == pytest.approx([0.0, 0.025, 0.05, 0.075, 0.1, 0.1])
    assert rates_of(toy("lr-warmup=2,0.5"), 3) == pytest.approx([0.05, 0.075, 0.1])


def test_policies_joined_by_plus_act_in_order(toy: Toy) -> None:
    assert rates_of(toy("lr-scale=4+lr-cap=0.2"), 1) == [0.2]
    assert rates_of(toy("lr-cap=0.2+lr-scale=4"), 1) == [0.4]
    assert rates_of(toy("lr-constant=1+lr-warmup=2"), 3) == [0.0, 0.5, 1.0]
    assert rates_of(toy("lr-warmup=2+lr-constant=1"), 3) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("spelling", "because"),
    [
        ("lr-cap", "RATE is missing"),
        ("lr-cap=0", "above 0"),
        ("lr-cap=nan", "finite"),
        ("lr-cap=1,2", "too many"),
        ("lr-cap=fast", "no number"),
        ("lr-constant=-1", "at least 0"),
        ("lr-scale", "FACTOR is missing"),
        ("lr-scale=:5", "FACTOR"),
        ("lr-scale=0.5:0", "at least 1"),
        ("lr-scale=0.5:", "no whole number"),
        ("lr-decay=1", "below 1"),
        ("lr-cosine=10,2", "at most 1"),
        ("lr-warmup=0", "at least 1"),
        ("lr-warmup=10,1", "below 1"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_with_its_reason_and_a_spelling_that_works(
    spelling: str, because: str
) -> None:
    with pytest.raises(UsageError, match=because) as refused:
        make_policies(spelling)
    assert refused.value.remedy is not None
    make_policies(refused.value.remedy.removeprefix("write "))
