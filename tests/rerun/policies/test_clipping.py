"""Clipping: bitwise torch's own, tensor by tensor, and ZClip against its published formula."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hnf_offline.errors import UsageError
from hnf_offline.rerun.policies.registry import make_policies
from hnf_offline.rerun.policies.zclip import ClipOutstandingNorm
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.start import Start
from hnf_offline.rerun.training import Training
from hnf_offline.run.model.loss import evaluate

Toy = Callable[..., Training]


def test_clip_is_bitwise_a_loop_with_torchs_clip_grad_norm(start: Start) -> None:
    training = start.training(Recipe(start.kinds[0]), make_policies("clip=0.5"))
    for _ in range(4):
        assert (
            float(training.advance().grad_norm or 0) > 0.5
        )  # so that it clips, and the logged norm is as before
    clipped = [parameter.detach().clone() for parameter in training.parameters]
    by_hand = start.training(Recipe(start.kinds[0]))
    for step in range(11, 15):
        (batch,) = start.batches.of(step)
        by_hand.optimizer.zero_grad()
        evaluate(by_hand.module, batch.tokens, batch.labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(by_hand.module.parameters(), 0.5)
        by_hand.optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(clipped, by_hand.parameters, strict=True))


def step_of(training: Training) -> torch.Tensor:
    """The gradient that SGD at rate 1 has used, from the weights it left."""
    before = torch.cat([parameter.detach().clone() for parameter in training.parameters])
    training.advance()
    return before - torch.cat([parameter.detach() for parameter in training.parameters])


GRADIENT = torch.tensor([[0.0] * 4, [3.0, 4.0, 0.3, 0.4]])


def test_the_whole_gradient_is_scaled_to_the_bound(toy: Toy) -> None:
    used = step_of(toy("clip=1", rate=1.0, gradients=GRADIENT))
    assert float(used.norm()) == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(used / used.norm(), GRADIENT[1] / GRADIENT[1].norm(), atol=1e-6)


def test_each_tensor_is_scaled_by_itself_and_small_ones_stay(toy: Toy) -> None:
    used = step_of(toy("clip-tensor=1", rate=1.0, gradients=GRADIENT))
    assert used.tolist() == pytest.approx([0.6, 0.8, 0.3, 0.4], abs=1e-5)


@pytest.mark.parametrize("spelling", ["clip=100", "clip-tensor=100", "zclip"])
def test_a_clipping_policy_stands_in_for_the_runs_own(toy: Toy, spelling: str) -> None:
    used = step_of(toy(spelling, rate=1.0, gradients=GRADIENT, recipe={"clip": 0.1}))
    assert used.tolist() == pytest.approx(GRADIENT[1].tolist(), abs=1e-6)
    kept = step_of(toy("lr-cap=5", rate=1.0, gradients=GRADIENT, recipe={"clip": 0.1}))
    assert float(kept.norm()) == pytest.approx(0.1, abs=1e-6)


def test_two_clippings_act_one_after_the_other(toy: Toy) -> None:
    used = step_of(toy("clip-tensor=1+clip=0.5", rate=1.0, gradients=GRADIENT))
    after_tensor = torch.tensor([0.6, 0.8, 0.3, 0.4])
    assert torch.allclose(used, 0.5 * after_tensor / after_tensor.norm(), atol=1e-5)
    used = step_of(toy("clip=0.5+clip-tensor=0.4", rate=1.0, gradients=GRADIENT))
    after_clip = 0.5 * GRADIENT[1] / GRADIENT[1].norm()
    assert used[:2].norm() == pytest.approx(0.4, abs=1e-5)
    assert torch.allclose(used[2:], after_clip[2:], atol=1e-6)


NORMS = [1.0 + 0.1 * math.sin(step) for step in range(30)]


def statistics(norms: list[float], alpha: float) -> tuple[float, float]:
    """Mean and standard deviation after the warm-up and the norms after it, none of which is clipped."""
    mean, variance = float(np.mean(norms[:25])), float(np.var(norms[:25]))
    for norm in norms[25:]:
        mean = alpha * mean + (1 - alpha) * norm
        variance = alpha * variance + (1 - alpha) * (norm - mean) ** 2
    return mean, math.sqrt(variance)


def test_zclip_knows_the_logged_norms_and_clips_an_outburst_to_its_reciprocal_bound(toy: Toy) -> None:
    gradients = torch.zeros(60, 4)
    gradients[31, 0] = 8.0
    used = step_of(toy("zclip", rate=1.0, gradients=gradients, norms=NORMS, start=30))
    mean, deviation = statistics(NORMS, 0.97)
    z = (8.0 - mean) / (deviation + 1e-6)
    assert z > 50
    assert float(used.norm()) == pytest.approx(mean + 2.5**2 / z * deviation, rel=1e-4)


def test_zclip_leaves_an_ordinary_norm_alone(toy: Toy) -> None:
    gradients = torch.zeros(60, 4)
    gradients[31, 0] = 1.05
    used = step_of(toy("zclip", rate=1.0, gradients=gradients, norms=NORMS, start=30))
    assert float(used[0]) == pytest.approx(1.05, rel=1e-6)


def test_zclip_does_not_learn_from_norms_after_the_checkpoint(toy: Toy) -> None:
    gradients = torch.zeros(60, 4)
    gradients[26, 0] = 8.0
    later = [*NORMS[:25], *[8.0] * 20]
    used = step_of(toy("zclip", rate=1.0, gradients=gradients, norms=later, start=25))
    assert float(used.norm()) < 1.5


def test_zclip_gathers_25_norms_where_the_log_has_none(toy: Toy) -> None:
    gradients = torch.zeros(60, 4)
    gradients[1:, 0] = torch.tensor([*NORMS[:25], *[8.0] * 34])
    training = toy("zclip", rate=1.0, gradients=gradients)
    used = [float(step_of(training).norm()) for _ in range(26)]
    assert used[:25] == pytest.approx(NORMS[:25], rel=1e-4)
    assert used[25] < 1.5


def test_what_was_clipped_counts_as_clipped_so_that_an_outburst_does_not_raise_the_bound() -> None:
    policy = ClipOutstandingNorm(2.5, 0.97)
    for norm in NORMS:
        policy.bound(norm)
    first, second = policy.bound(50.0), policy.bound(50.0)
    assert first is not None and second is not None
    assert second < 1.2


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, min_value=None), max_size=60))
def test_a_zclip_bound_is_below_the_norm_and_above_the_mean_whatever_came_before(norms: list[float]) -> None:
    policy = ClipOutstandingNorm(2.5, 0.97)
    for value in norms:
        norm = min(abs(value), 1e30) if math.isfinite(value) else value
        mean = policy.mean
        bound = policy.bound(norm)
        if bound is not None and mean is not None:
            assert mean <= bound <= norm * (1 + 1e-9)
    assert policy.mean is None or math.isfinite(policy.mean)


@pytest.mark.parametrize("spelling", ["clip=0", "clip", "clip=inf", "clip-tensor=-1", "zclip=0", "zclip=2,1"])
def test_bounds_that_cannot_be_meant_are_refused(spelling: str) -> None:
    with pytest.raises(UsageError):
        make_policies(spelling)
