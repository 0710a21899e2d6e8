"""A policy whose effect depends on how many updates have been made since the checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.rerun.policies.policy import Policy

if TYPE_CHECKING:
    from hnf_offline.rerun.training import Training


class SinceCheckpoint(Policy):
    """Count steps from where the retraining begins.

    Attributes:
        start: step of the checkpoint.
    """

    start: int = 0

    def begin(self, training: Training) -> None:
        """Note where the retraining begins."""
        self.start = training.step

    def elapsed(self, step: int) -> int:
        """Count the steps between the checkpoint and a step: 0 for the first step of the retraining.

        Returns:
            k = s - 1 - start.
        """
        return step - 1 - self.start
