"""A policy that looks at the stability ratio S every few steps."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from hnf_offline.errors import UsageError
from hnf_offline.rerun.policies.since import SinceCheckpoint

if TYPE_CHECKING:
    from hnf_offline.rerun.training import Training

#: Steps between two looks: what the study used.
EVERY = 8
#: What a look at S costs.
COST_OF_S = "S of the whole model (about 4-13 Hessian-vector products on the replay rows)"


class LooksAtStability(SinceCheckpoint):
    """Look at S before the first step and every so many steps after it.

    Attributes:
        every: steps between two looks.
        seen: whether a look has told anything yet; until then every step is one.
    """

    every: int = EVERY
    seen: bool = False

    def begin(self, training: Training) -> None:
        """Check that S can be measured.

        Raises:
            UsageError: if it cannot.
        """
        super().begin(training)
        self.seen = False
        if not training.measures_stability:
            raise UsageError(
                "this policy follows the stability ratio S, which is not measured here",
                remedy="use a policy that needs no curvature, such as lr-decay or lr-cosine",
            )

    def before(self, training: Training, step: int) -> None:
        """Look when it is time."""
        if not self.seen or self.elapsed(step) % self.every == 0:
            self.seen = self.look(training, step)

    @abstractmethod
    def look(self, training: Training, step: int) -> bool:
        """Measure, and act on it.

        Returns:
            Whether S could be measured: not before an Adam without moments has made its first update.
        """
