"""Make no update at some steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hnf_offline.errors import UsageError
from hnf_offline.rerun.policies.arguments import spans
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy

if TYPE_CHECKING:
    from hnf_offline.rerun.training import Training


@dataclass
class SkipSteps(Policy):
    """Leave weights and optimizer state as they are at some steps; the next step takes its own batch.

    Attributes:
        skipped: the steps.
    """

    skipped: tuple[range, ...]

    def begin(self, training: Training) -> None:
        """Check that a step to skip is still to come.

        Raises:
            UsageError: if all of them lie before the checkpoint.
        """
        last = max(span[-1] for span in self.skipped)
        if last <= training.step:
            raise UsageError(
                f"step {last} is not trained again: retraining begins after step {training.step}",
                remedy=f"skip steps above {training.step}, or begin at an earlier checkpoint",
            )

    def batch_of(self, training: Training, step: int) -> int | None:
        """Choose the batch.

        Returns:
            None at the steps to skip, otherwise the batch as it was.
        """
        under_way = training.step + 1
        return None if any(under_way in span for span in self.skipped) else step


@policy(
    "skip",
    value="STEPS",
    summary="Make no update at these steps (220,221 or 1318-1343): their batches are never seen.",
    formula="theta_s <- theta_{s-1}, optimizer state likewise, for s in STEPS; others keep batch and learning rate",
    reference="batch skipping: Chowdhery et al. 2022, PaLM (arXiv 2204.02311), section 5.1",
    cost="nothing; a skipped step saves its forward and backward pass",
    example="skip=220,221",
)
def make(value: str | None) -> Policy:
    """Read STEPS.

    Returns:
        The policy.
    """
    return SkipSteps(spans(value, "STEPS"))
