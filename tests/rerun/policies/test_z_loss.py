"""z-loss: value and gradient by hand, and the logged loss without it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hnf_offline.errors import UsageError
from hnf_offline.profile.batch import MicroBatch
from hnf_offline.rerun.policies.registry import make_policies
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.start import Start
from hnf_offline.run.model.loss import Outcome, evaluate

MICRO = MicroBatch(torch.zeros(1, 2, dtype=torch.int64), None, 1.0)


def test_its_gradient_is_twice_log_z_times_the_probabilities(start: Start) -> None:
    (policy,) = make_policies("z-loss=0.25")
    training = start.training(Recipe(start.kinds[0]))
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    outcome = Outcome(logits.sum(), logits, torch.zeros(5, dtype=torch.int64))
    extra = policy.penalty(training, 11, outcome, MICRO)
    assert extra is not None
    log_z = logits.exp().sum(-1).log()
    assert float(extra.detach()) == pytest.approx(0.25 * float((log_z.detach() ** 2).mean()), rel=1e-12)
    (gradient,) = torch.autograd.grad(extra, logits)
    by_hand = 0.25 * 2 * log_z[:, None] * logits.softmax(-1) / 5
    torch.testing.assert_close(gradient, by_hand)


def test_it_pulls_log_z_towards_zero_and_leaves_the_logged_loss(start: Start) -> None:
    def log_z_after(spelling: str | None) -> tuple[float, float]:
        training = start.training(Recipe(start.kinds[0]), make_policies(spelling) if spelling else ())
        first = training.advance().loss
        for _ in range(15):
            training.advance()
        tokens = start.batches.of(30)[0].tokens
        logits = evaluate(training.module, tokens, None).logits
        assert first is not None
        assert logits is not None
        return float(first), float(logits.detach().logsumexp(-1).abs().mean())

    (loss, was), (same_loss, now) = log_z_after(None), log_z_after("z-loss=1.0")
    assert same_loss == loss
    assert now < 0.85 * was


def test_large_logits_in_half_precision_do_not_overflow(start: Start) -> None:
    (policy,) = make_policies("z-loss=1e-4")
    training = start.training(Recipe(start.kinds[0]))
    logits = torch.full((2, 4), 1000.0, dtype=torch.float16)
    extra = policy.penalty(training, 11, Outcome(torch.zeros(()), logits, None), MICRO)
    assert extra is not None
    assert float(extra) == pytest.approx(1e-4 * (1000 + torch.tensor(4.0).log().item()) ** 2, rel=1e-3)


def test_a_model_that_hides_its_logits_is_refused(start: Start) -> None:
    (policy,) = make_policies("z-loss=1e-4")
    training = start.training(Recipe(start.kinds[0]))
    hidden = Outcome(nn.Parameter(torch.ones(())) * 2, None, None)
    with pytest.raises(UsageError, match=r"without logits; let its forward return an object with \.logits"):
        policy.penalty(training, 11, hidden, MICRO)


@pytest.mark.parametrize("value", ["", "0", "-1e-4", "nan", "inf", "much", "1,2"])
def test_a_weight_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="write z-loss=1e-4"):
        make_policies(f"z-loss={value}")
