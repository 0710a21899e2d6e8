"""Change Adam's epsilon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hnf_offline.rerun.policies.adam import require_adam
from hnf_offline.rerun.policies.arguments import fields, number
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy

if TYPE_CHECKING:
    from hnf_offline.rerun.training import Training


@dataclass
class ChangeEpsilon(Policy):
    """Bound Adam's preconditioner: no direction is amplified by more than 1 / epsilon.

    Attributes:
        eps: the new epsilon.
    """

    eps: float

    def begin(self, training: Training) -> None:
        """Set it for all parameters."""
        require_adam(training, "eps")
        for group in training.optimizer.param_groups:
            group["eps"] = self.eps
        training.forget_stability()


@policy(
    "eps",
    value="EPS",
    summary="Adam's epsilon becomes EPS: larger damps directions of tiny gradients, smaller lets them learn.",
    formula="theta <- theta - eta m_hat / (sqrt(v_hat) + EPS)",
    reference=(
        "Wortsman et al. 2023, Small-scale proxies (arXiv 2309.14322): gradients near epsilon stop "
        "learning; Bai et al. (arXiv 2506.04805): a large epsilon suppresses spikes"
    ),
    cost="nothing",
    example="eps=1e-6",
)
def make(value: str | None) -> Policy:
    """Read EPS.

    Returns:
        The policy.
    """
    (eps,) = fields(value, ["EPS"], required=1)
    return ChangeEpsilon(number(str(eps), "EPS", above=0))
