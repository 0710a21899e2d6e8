"""Lower the learning rate for some steps whenever S passes 1, and restore it: the source document's way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.rerun.policies.arguments import fields, number, whole
from hnf_offline.rerun.policies.looking import COST_OF_S, EVERY, LooksAtStability
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy

if TYPE_CHECKING:
    from hnf_offline.rerun.training import Training


class RestoreLearningRate(LooksAtStability):
    """A learning rate that is cut at an alarm and restored some steps later, again and again.

    Attributes:
        factor: the multiplier after an alarm.
        steps: how long it holds.
        until: last step of the cut in force, None where the rate is the run's own.
    """

    def __init__(self, factor: float, steps: int, every: int) -> None:
        self.factor = factor
        self.steps = steps
        self.every = every
        self.until: int | None = None

    def begin(self, training: Training) -> None:
        """Start from the run's own rate."""
        super().begin(training)
        self.until = None

    def before(self, training: Training, step: int) -> None:
        """Restore the rate when the cut is over, then look when it is time."""
        if self.until is not None and step > self.until:
            self.until = None
            training.forget_stability()
        super().before(training, step)

    def look(self, training: Training, step: int) -> bool:
        """Cut the rate if S of the rate in use is above 1 and no cut is in force.

        Returns:
            Whether S could be measured.
        """
        if self.until is not None:
            return True
        stability = training.stability()
        if stability is None:
            return False
        if stability.ratio > 1:
            self.until = step + self.steps - 1
            training.forget_stability()
        return True

    def learning_rate(self, training: Training, step: int, rate: float) -> float:
        """Cut the rate while a cut is in force.

        Returns:
            eta, or eta times the factor.
        """
        return rate * self.factor if self.until is not None and step <= self.until else rate


@policy(
    "lr-restore",
    value="[FACTOR[,STEPS[,EVERY]]]",
    summary="Multiply the learning rate by FACTOR for STEPS steps at each alarm S > 1, then restore it.",
    formula="eta_s <- eta_s FACTOR for STEPS steps after S(eta) > 1, then eta_s again; S seen every EVERY steps",
    reference=(
        "the source document's Experiment 3 (halve for 100 steps); the rate that comes back meets a sharpness that "
        "has grown to the lower one: compare it with lr-ratchet and lr-decay; defaults .5, 100, 8"
    ),
    cost=f"every EVERY steps {COST_OF_S}",
    example="lr-restore=0.5,100,8",
)
def make(value: str | None) -> Policy:
    """Read FACTOR, STEPS and EVERY.

    Returns:
        The policy.
    """
    factor, steps, every = fields(value, ["FACTOR", "STEPS", "EVERY"], required=0)
    return RestoreLearningRate(
        number(factor or "0.5", "FACTOR", above=0, below=1),
        whole(steps or "100", "STEPS"),
        whole(every or str(EVERY), "EVERY"),
    )
