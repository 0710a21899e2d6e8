"""Lower the learning rate for good whenever S of the rate in use passes 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.rerun.policies.arguments import fields, number, whole
from hnf_offline.rerun.policies.looking import COST_OF_S, EVERY, LooksAtStability
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy

if TYPE_CHECKING:
    from hnf_offline.rerun.training import Training


class RatchetLearningRate(LooksAtStability):
    """A learning rate that only ever falls, and only at an alarm.

    Attributes:
        factor: the multiplier at an alarm.
        apart: least number of steps between two reductions.
        floor: smallest share of the run's own rate.
        share: the share in force.
        last: step of the last reduction, None before the first.
    """

    def __init__(self, factor: float, apart: int, floor: float, every: int) -> None:
        self.factor = factor
        self.apart = apart
        self.floor = floor
        self.every = every
        self.share = 1.0
        self.last: int | None = None

    def begin(self, training: Training) -> None:
        """Start from the run's own rate."""
        super().begin(training)
        self.share = 1.0
        self.last = None

    def look(self, training: Training, step: int) -> bool:
        """Lower the share if S of the rate in use is above 1 and the last reduction is long enough ago.

        Returns:
            Whether S could be measured.
        """
        stability = training.stability()
        if stability is None:
            return False
        rested = self.last is None or step - self.last >= self.apart
        if stability.ratio > 1 and rested:
            self.share = max(self.floor, self.share * self.factor)
            self.last = step
            training.forget_stability()
        return True

    def learning_rate(self, training: Training, step: int, rate: float) -> float:
        """Lower the rate.

        Returns:
            eta times the share in force.
        """
        return rate * self.share


@policy(
    "lr-ratchet",
    value="[FACTOR[,APART[,FLOOR[,EVERY]]]]",
    summary="Multiply the learning rate by FACTOR for good at each alarm S > 1, at least APART steps apart.",
    formula="share <- max(FLOOR, FACTOR share) when S(eta share) > 1; eta_s <- eta_s share; S seen every EVERY steps",
    reference=(
        "this project; compare it with lr-decay, which is blind to S and may do as well; defaults .7, 60, .2, 8"
    ),
    cost=f"every EVERY steps {COST_OF_S}",
    example="lr-ratchet=0.7,60,0.2,8",
)
def make(value: str | None) -> Policy:
    """Read FACTOR, APART, FLOOR and EVERY.

    Returns:
        The policy.
    """
    factor, apart, floor, every = fields(value, ["FACTOR", "APART", "FLOOR", "EVERY"], required=0)
    return RatchetLearningRate(
        number(factor or "0.7", "FACTOR", above=0, below=1),
        whole(apart or "60", "APART"),
        number(floor or "0.2", "FLOOR", least=0, most=1),
        whole(every or str(EVERY), "EVERY"),
    )
