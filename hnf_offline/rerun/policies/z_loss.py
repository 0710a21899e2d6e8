"""Keep the output logits' normaliser near one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.errors import UsageError
from hnf_offline.rerun.policies.arguments import fields, number
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.profile.batch import MicroBatch
    from hnf_offline.rerun.training import Training
    from hnf_offline.run.model.loss import Outcome


class ZLoss(Policy):
    """Adds WEIGHT times the mean squared log Z."""

    def __init__(self, weight: float) -> None:
        """Choose the strength.

        Args:
            weight: of the penalty.
        """
        self.weight = weight

    def penalty(self, training: Training, step: int, outcome: Outcome, micro: MicroBatch) -> Tensor:
        """Penalise log Z of the predicted positions.

        Returns:
            WEIGHT mean log^2 Z.

        Raises:
            UsageError: if the model hides its logits.
        """
        if outcome.logits is None:
            raise UsageError(
                "--policy z-loss: the model returns a loss without logits",
                remedy="let its forward return an object with .logits as well",
            )
        logits = outcome.logits if outcome.logits.dtype.itemsize >= 4 else outcome.logits.float()
        return self.weight * logits.logsumexp(dim=-1).square().mean()


@policy(
    "z-loss",
    value="WEIGHT",
    summary="Penalise the softmax normaliser of the output; acts on later steps, the function stays as it is.",
    formula="loss + WEIGHT mean_i log^2 Z_i, Z_i = sum_j exp(y_ij) over the vocabulary at predicted position i",
    reference="Chowdhery et al. 2022, PaLM, arXiv 2204.02311, section 5 (WEIGHT 1e-4); as a remedy for drifting "
    "output logits Wortsman et al. 2023, arXiv 2309.14322, section 3.1.2",
    cost="one pass over the logits",
    example="z-loss=1e-4",
)
def make(text: str | None) -> ZLoss:
    """Read the weight.

    Returns:
        The policy.
    """
    (weight,) = fields(text, ["WEIGHT"], required=1)
    return ZLoss(number(str(weight), "WEIGHT", above=0))
