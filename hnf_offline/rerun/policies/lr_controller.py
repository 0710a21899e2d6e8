"""Keep the learning rate where S stays below a target."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hnf_offline.rerun.policies.arguments import fields, number, whole
from hnf_offline.rerun.policies.looking import COST_OF_S, EVERY, LooksAtStability
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy

if TYPE_CHECKING:
    from hnf_offline.rerun.training import Training


class ControlStability(LooksAtStability):
    """Lower the learning rate as far as S of the run's own rate asks for, and no further than a floor.

    S is proportional to the learning rate, so one look gives S of any rate until the next one: a rate that the
    schedule raises between two looks is lowered at once.

    Attributes:
        target: S that is aimed at.
        floor: smallest share of the run's own rate.
        slope: S divided by the learning rate, as last seen; None before the first look.
    """

    def __init__(self, target: float, floor: float, every: int) -> None:
        self.target = target
        self.floor = floor
        self.every = every
        self.slope: float | None = None

    def begin(self, training: Training) -> None:
        """Forget what an earlier training showed."""
        super().begin(training)
        self.slope = None

    def look(self, training: Training, step: int) -> bool:
        """Measure S at the rate of this step.

        Returns:
            Whether S and the rate are known and not zero.
        """
        rate = training.learning_rate_of(step)
        stability = training.stability()
        if stability is None or not rate > 0:
            return False
        # An S that is no number says nothing good: the floor then holds, as for an infinite one.
        self.slope = float("inf") if math.isnan(stability.ratio) else stability.ratio / rate
        training.forget_stability()
        return True

    def learning_rate(self, training: Training, step: int, rate: float) -> float:
        """Lower the rate.

        Returns:
            eta clip(TARGET / S(eta), FLOOR, 1).
        """
        if self.slope is None or not rate * self.slope > self.target:
            return rate
        return rate * max(self.floor, self.target / (rate * self.slope))


@policy(
    "lr-controller",
    value="[TARGET[,FLOOR[,EVERY]]]",
    summary="Lower the learning rate so that S stays at TARGET, never below FLOOR times the run's own.",
    formula="eta_s <- eta_s clip(TARGET / S(eta_s), FLOOR, 1), S(eta) = eta S_seen / eta_seen, seen every EVERY steps",
    reference=(
        "this project; needs no horizon, as a cosine does; without a floor the landscape can sharpen as fast as the "
        "rate falls; defaults .8, .25, 8"
    ),
    cost=f"every EVERY steps {COST_OF_S}",
    example="lr-controller=0.8,0.25,8",
)
def make(value: str | None) -> Policy:
    """Read TARGET, FLOOR and EVERY.

    Returns:
        The policy.
    """
    target, floor, every = fields(value, ["TARGET", "FLOOR", "EVERY"], required=0)
    return ControlStability(
        number(target or "0.8", "TARGET", above=0),
        number(floor or "0.25", "FLOOR", least=0, most=1),
        whole(every or str(EVERY), "EVERY"),
    )
