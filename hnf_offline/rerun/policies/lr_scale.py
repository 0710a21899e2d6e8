"""Multiply the learning rate, for good or for some steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.rerun.policies.arguments import fields, number, whole
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy
from hnf_offline.rerun.policies.since import SinceCheckpoint

if TYPE_CHECKING:
    from hnf_offline.rerun.training import Training


class ScaleLearningRate(SinceCheckpoint):
    """Scale the learning rate, and restore it after some steps if asked.

    Attributes:
        factor: the multiplier.
        steps: how many steps it lasts, None for good.
    """

    def __init__(self, factor: float, steps: int | None) -> None:
        self.factor = factor
        self.steps = steps

    def learning_rate(self, training: Training, step: int, rate: float) -> float:
        """Scale the rate.

        Returns:
            FACTOR eta for the first STEPS steps, eta from then on.
        """
        lasts = self.steps is None or self.elapsed(step) < self.steps
        return rate * self.factor if lasts else rate


@policy(
    "lr-scale",
    value="FACTOR[:STEPS]",
    summary="Multiply the learning rate by FACTOR, for good, or restore it after STEPS steps.",
    formula="eta_s <- FACTOR eta_s for the first STEPS steps after the checkpoint, then eta_s again",
    reference=(
        "the source document's reduction 'by 2x for the next 100 steps' (its Experiment 3) is lr-scale=0.5:100; "
        "restoring the rate brings the next spike, because the sharpness grows until S is 1 at the lower rate: "
        "leave STEPS out"
    ),
    cost="nothing",
    example="lr-scale=0.5",
)
def make(value: str | None) -> Policy:
    """Read FACTOR and STEPS.

    Returns:
        The policy.
    """
    given, mark, lasting = (value or "").partition(":")
    (factor,) = fields(given if value else None, ["FACTOR"], required=1)
    steps = whole(lasting.strip(), "STEPS") if mark else None
    return ScaleLearningRate(number(str(factor), "FACTOR", least=0), steps)
