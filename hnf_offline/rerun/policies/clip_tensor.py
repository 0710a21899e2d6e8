"""Clip the gradient of every parameter tensor by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hnf_offline.rerun.policies.arguments import fields, number
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.rerun.training import Training


@dataclass
class ClipTensorNorm(Policy):
    """Bound the gradient norm of each parameter tensor, in place of the run's own clipping.

    Attributes:
        most: the bound.
    """

    most: float

    def begin(self, training: Training) -> None:
        """Switch the run's own clipping off."""
        training.clip = None

    def gradients(self, training: Training, step: int, norm: Tensor) -> None:
        """Scale each tensor's gradient down to the bound."""
        from torch.nn.utils import clip_grad_norm_

        for parameter in training.parameters:
            if parameter.grad is not None:
                clip_grad_norm_(parameter, self.most)


@policy(
    "clip-tensor",
    value="NORM",
    summary="Clip the gradient norm of each parameter tensor at NORM, instead of the run's own clipping.",
    formula="g_i <- g_i min(1, NORM / (||g_i|| + 1e-6)) for every parameter tensor i",
    reference=(
        "per-tensor clipping, as in AdaGC, Wang et al. 2025 (arXiv 2502.11034), here with one constant bound: "
        "one layer's outburst does not shrink the others' steps"
    ),
    cost="one pass over the gradient",
    example="clip-tensor=0.1",
)
def make(value: str | None) -> Policy:
    """Read NORM.

    Returns:
        The policy.
    """
    (norm,) = fields(value, ["NORM"], required=1)
    return ClipTensorNorm(number(str(norm), "NORM", above=0))
