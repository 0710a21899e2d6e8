"""Lower the learning rate by the clock, whatever the curvature says: the control of the S ratchet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.rerun.policies.arguments import fields, number, whole
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy
from hnf_offline.rerun.policies.since import SinceCheckpoint

if TYPE_CHECKING:
    from hnf_offline.rerun.training import Training


class DecayLearningRate(SinceCheckpoint):
    """Multiply the learning rate by a factor every so many steps, down to a floor.

    Attributes:
        factor: the multiplier of each reduction.
        apart: steps between two reductions; the first comes at once.
        floor: smallest share of the run's own rate.
    """

    def __init__(self, factor: float, apart: int, floor: float) -> None:
        self.factor = factor
        self.apart = apart
        self.floor = floor

    def learning_rate(self, training: Training, step: int, rate: float) -> float:
        """Lower the rate.

        Returns:
            eta max(FLOOR, FACTOR^(1 + floor(k / APART))), k steps after the checkpoint.
        """
        reductions = 1 + self.elapsed(step) // self.apart
        return rate * max(self.floor, self.factor**reductions)


@policy(
    "lr-decay",
    value="[FACTOR[,APART[,FLOOR]]]",
    summary="Lower the learning rate by FACTOR at once and again every APART steps, down to FLOOR: blind to curvature.",
    formula="eta_s <- eta_s max(FLOOR, FACTOR^(1 + floor(k / APART))), k = steps since the checkpoint",
    reference=(
        "this project: the control of lr-ratchet, which knows S; what helps without it was not S; defaults .7, 60, .2"
    ),
    cost="nothing",
    example="lr-decay=0.7,60,0.2",
)
def make(value: str | None) -> Policy:
    """Read FACTOR, APART and FLOOR.

    Returns:
        The policy.
    """
    factor, apart, floor = fields(value, ["FACTOR", "APART", "FLOOR"], required=0)
    return DecayLearningRate(
        number(factor or "0.7", "FACTOR", above=0, below=1),
        whole(apart or "60", "APART"),
        number(floor or "0.2", "FLOOR", least=0, most=1),
    )
