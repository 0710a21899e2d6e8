"""Change Adam's beta1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hnf_offline.rerun.policies.adam import FIRST, require_adam, set_beta
from hnf_offline.rerun.policies.arguments import fields, number
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy

if TYPE_CHECKING:
    from hnf_offline.rerun.training import Training


@dataclass
class ChangeBeta1(Policy):
    """Average the gradient over more or fewer steps.

    Attributes:
        beta: the new beta1.
    """

    beta: float

    def begin(self, training: Training) -> None:
        """Set it; the corrected first moment stays what it was."""
        require_adam(training, "beta1")
        set_beta(training, FIRST, self.beta)


@policy(
    "beta1",
    value="BETA",
    summary="Adam's beta1 becomes BETA; the bias-corrected first moment does not jump.",
    formula="b1 <- BETA, m <- m (1 - BETA^t) / (1 - b1^t) once, so m_hat stays; stable up to S = 1 with the new b1",
    reference="Kingma & Ba 2015 (arXiv 1412.6980), section 3; edge 2 (1 + b1) / (1 - b1): arXiv 2207.14484",
    cost="nothing",
    example="beta1=0.8",
)
def make(value: str | None) -> Policy:
    """Read BETA.

    Returns:
        The policy.
    """
    (beta,) = fields(value, ["BETA"], required=1)
    return ChangeBeta1(number(str(beta), "BETA", least=0, below=1))
