"""Change the weight decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hnf_offline.rerun.policies.arguments import fields, number
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy

if TYPE_CHECKING:
    from hnf_offline.rerun.training import Training


@dataclass
class ChangeWeightDecay(Policy):
    """Decay weights faster or slower.

    Attributes:
        decay: the new coefficient.
    """

    decay: float

    def begin(self, training: Training) -> None:
        """Set it where the run has weight decay; everywhere if it has none at all."""
        groups = training.optimizer.param_groups
        decaying = [group for group in groups if group.get("weight_decay")]
        for group in decaying or groups:
            group["weight_decay"] = self.decay


@policy(
    "weight-decay",
    value="DECAY",
    summary="The weight decay becomes DECAY in every parameter group that has one (in all, if none has).",
    formula="AdamW: theta <- theta (1 - eta DECAY) before the step; Adam, SGD: g <- g + DECAY theta",
    reference="Loshchilov & Hutter 2019, Decoupled weight decay regularization (arXiv 1711.05101)",
    cost="nothing",
    example="weight-decay=0.1",
)
def make(value: str | None) -> Policy:
    """Read DECAY.

    Returns:
        The policy.
    """
    (decay,) = fields(value, ["DECAY"], required=1)
    return ChangeWeightDecay(number(str(decay), "DECAY", least=0))
