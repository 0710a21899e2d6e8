"""Hold the learning rate constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hnf_offline.rerun.policies.arguments import fields, number
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy

if TYPE_CHECKING:
    from hnf_offline.rerun.training import Training


@dataclass
class ConstantLearningRate(Policy):
    """Use one learning rate from the checkpoint on.

    Attributes:
        constant: the rate of the first parameter group; the others keep their ratios to it.
    """

    constant: float

    def learning_rate(self, training: Training, step: int, rate: float) -> float:
        """Replace the rate.

        Returns:
            RATE.
        """
        return self.constant


@policy(
    "lr-constant",
    value="RATE",
    summary="One learning rate from the checkpoint on, whatever the run's schedule says.",
    formula="eta_s <- RATE (parameter groups keep their ratios)",
    reference="definition; the search for the largest stable learning rate uses it",
    cost="nothing",
    example="lr-constant=1e-3",
)
def make(value: str | None) -> Policy:
    """Read RATE.

    Returns:
        The policy.
    """
    (rate,) = fields(value, ["RATE"], required=1)
    return ConstantLearningRate(number(str(rate), "RATE", least=0))
