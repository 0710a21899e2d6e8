"""Go back to a checkpoint and on with later data: PaLM's way round a spike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hnf_offline.errors import UsageError
from hnf_offline.rerun.policies.arguments import fields, whole
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy

if TYPE_CHECKING:
    from hnf_offline.rerun.training import Training


@dataclass
class RollBackAndSkip(Policy):
    """Train on the data of later steps, as if the batches in between had been left out.

    Attributes:
        skipped: how many batches are left out.
    """

    skipped: int

    def begin(self, training: Training) -> None:
        """Check that there is such data, and that it is other data.

        Raises:
            UsageError: if not.
        """
        if training.batches.source.every_step:
            raise UsageError(
                "every step of this run has the same batch, so leaving batches out changes nothing",
                remedy="use a policy that changes the steps, such as lr-scale",
            )
        first = training.step + 1 + self.skipped
        if not training.batches.has(first + training.recipe.batch_offset):
            raise UsageError(
                f"the batch of step {first} is not in the file of batches",
                path=training.batches.source.path,
                remedy="skip fewer batches",
            )

    def batch_of(self, training: Training, step: int) -> int | None:
        """Choose the batch.

        Returns:
            The batch of step s + N.
        """
        return step + self.skipped


@policy(
    "rollback-skip",
    value="N",
    summary="From this checkpoint on, leave out N batches: step s is trained on the batch of step s + N.",
    formula="batch_s <- batch_{s+N}; the learning rate of step s stays that of step s",
    reference=(
        "Chowdhery et al. 2022, PaLM (arXiv 2204.02311), section 5.1: restarted about 100 steps before the spike and "
        "skipped roughly 200-500 batches; the same batches did no harm from another checkpoint"
    ),
    cost="nothing",
    example="rollback-skip=20",
)
def make(value: str | None) -> Policy:
    """Read N.

    Returns:
        The policy.
    """
    (skipped,) = fields(value, ["N"], required=1)
    return RollBackAndSkip(whole(str(skipped), "N"))
