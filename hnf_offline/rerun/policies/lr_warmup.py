"""Warm the learning rate up again from the checkpoint on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.rerun.policies.arguments import fields, number, whole
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy
from hnf_offline.rerun.policies.since import SinceCheckpoint

if TYPE_CHECKING:
    from hnf_offline.rerun.training import Training


class WarmUpLearningRate(SinceCheckpoint):
    """Raise the learning rate linearly to the run's own.

    Attributes:
        steps: how many steps it takes.
        begin_at: the first share of the run's own rate.
    """

    def __init__(self, steps: int, begin_at: float) -> None:
        self.steps = steps
        self.begin_at = begin_at

    def learning_rate(self, training: Training, step: int, rate: float) -> float:
        """Warm the rate up.

        Returns:
            eta (FROM + (1 - FROM) k / STEPS), k steps after the checkpoint; eta once k reaches STEPS.
        """
        if self.elapsed(step) >= self.steps:
            return rate
        share = max(self.elapsed(step), 0) / self.steps
        return rate * (self.begin_at + (1 - self.begin_at) * share)


@policy(
    "lr-warmup",
    value="STEPS[,FROM]",
    summary="Warm up again: the learning rate rises from FROM (0) times the run's own to it over STEPS steps.",
    formula="eta_s <- eta_s (FROM + (1 - FROM) min(k, STEPS) / STEPS), k = steps since the checkpoint",
    reference=(
        "re-warming: Gupta et al. 2023, Continual pre-training of large language models: how to (re)warm your "
        "model? (arXiv 2308.04014); why it stabilises: Kalra & Barkeshli 2024 (arXiv 2406.09405)"
    ),
    cost="nothing",
    example="lr-warmup=100",
)
def make(value: str | None) -> Policy:
    """Read STEPS and FROM.

    Returns:
        The policy.
    """
    steps, begin_at = fields(value, ["STEPS", "FROM"], required=1)
    return WarmUpLearningRate(whole(str(steps), "STEPS"), number(begin_at or "0", "FROM", least=0, below=1))
