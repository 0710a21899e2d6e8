"""Cap the learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hnf_offline.rerun.policies.arguments import fields, number
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy

if TYPE_CHECKING:
    from hnf_offline.rerun.training import Training


@dataclass
class CapLearningRate(Policy):
    """Never let the learning rate exceed a bound.

    Attributes:
        most: the bound.
    """

    most: float

    def learning_rate(self, training: Training, step: int, rate: float) -> float:
        """Bound the rate.

        Returns:
            min(eta, RATE).
        """
        return min(rate, self.most)


@policy(
    "lr-cap",
    value="RATE",
    summary="The learning rate never exceeds RATE; with RATE = lr/S of a checkpoint, the largest stable one there.",
    formula="eta_s <- min(eta_s, RATE)",
    reference="2/lambda_max bound: Cohen et al. 2021 (arXiv 2103.00065), for Adam 2022 (arXiv 2207.14484)",
    cost="nothing",
    example="lr-cap=8.4e-3",
)
def make(value: str | None) -> Policy:
    """Read RATE.

    Returns:
        The policy.
    """
    (rate,) = fields(value, ["RATE"], required=1)
    return CapLearningRate(number(str(rate), "RATE", above=0))
