"""Change Adam's beta2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hnf_offline.rerun.policies.adam import SECOND, require_adam, set_beta
from hnf_offline.rerun.policies.arguments import fields, number
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy

if TYPE_CHECKING:
    from hnf_offline.rerun.training import Training


@dataclass
class ChangeBeta2(Policy):
    """Let Adam's second moment follow the gradient faster or slower.

    Attributes:
        beta: the new beta2.
    """

    beta: float

    def begin(self, training: Training) -> None:
        """Set it; the corrected second moment stays what it was."""
        require_adam(training, "beta2")
        set_beta(training, SECOND, self.beta)


@policy(
    "beta2",
    value="BETA",
    summary="Adam's beta2 becomes BETA; the bias-corrected second moment does not jump.",
    formula="b2 <- BETA, v <- v (1 - BETA^t) / (1 - b2^t) once, so that v_hat stays and later corrections are exact",
    reference=(
        "a lower beta2 removes spikes that come from a lagging second moment: Wortsman et al. 2023 "
        "(arXiv 2304.13013); Bai et al. (arXiv 2506.04805)"
    ),
    cost="nothing",
    example="beta2=0.95",
)
def make(value: str | None) -> Policy:
    """Read BETA.

    Returns:
        The policy.
    """
    (beta,) = fields(value, ["BETA"], required=1)
    return ChangeBeta2(number(str(beta), "BETA", least=0, below=1))
