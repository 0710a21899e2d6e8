"""Anneal the learning rate by a cosine from the checkpoint on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hnf_offline.rerun.policies.arguments import fields, number, whole
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy
from hnf_offline.rerun.policies.since import SinceCheckpoint

if TYPE_CHECKING:
    from hnf_offline.rerun.training import Training


class CosineLearningRate(SinceCheckpoint):
    """Half a cosine from the run's rate down to a floor.

    Attributes:
        steps: how many steps it takes; afterwards the rate stays at the floor.
        floor: the last share of the run's own rate.
    """

    def __init__(self, steps: int, floor: float) -> None:
        self.steps = steps
        self.floor = floor

    def learning_rate(self, training: Training, step: int, rate: float) -> float:
        """Anneal the rate.

        Returns:
            eta (FLOOR + (1 - FLOOR) (1 + cos(pi k / STEPS)) / 2), k steps after the checkpoint.
        """
        share = min(max(self.elapsed(step), 0), self.steps) / self.steps
        return rate * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * share)) / 2)


@policy(
    "lr-cosine",
    value="STEPS[,FLOOR]",
    summary="Anneal the learning rate by half a cosine over STEPS steps, to FLOOR times the run's own (0).",
    formula="eta_s <- eta_s (FLOOR + (1 - FLOOR) (1 + cos(pi min(k, STEPS) / STEPS)) / 2), k steps since checkpoint",
    reference="Loshchilov & Hutter 2017, SGDR (arXiv 1608.03983), equation 5",
    cost="nothing",
    example="lr-cosine=1000,0.1",
)
def make(value: str | None) -> Policy:
    """Read STEPS and FLOOR.

    Returns:
        The policy.
    """
    steps, floor = fields(value, ["STEPS", "FLOOR"], required=1)
    return CosineLearningRate(whole(str(steps), "STEPS"), number(floor or "0", "FLOOR", least=0, most=1))
