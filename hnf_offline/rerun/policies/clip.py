"""Clip the gradient's total norm."""

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
class ClipTotalNorm(Policy):
    """Bound the norm of the whole gradient, in place of the run's own clipping.

    Attributes:
        most: the bound.
    """

    most: float

    def begin(self, training: Training) -> None:
        """Switch the run's own clipping off."""
        training.clip = None

    def gradients(self, training: Training, step: int, norm: Tensor) -> None:
        """Scale the gradient down to the bound."""
        from torch.nn.utils import clip_grad_norm_

        # Not `norm`: a policy before this one may have changed the gradient.
        clip_grad_norm_(training.parameters, self.most)


@policy(
    "clip",
    value="NORM",
    summary="Clip the norm of the whole gradient at NORM, instead of the run's own clipping.",
    formula="g <- g min(1, NORM / (||g|| + 1e-6)), ||g|| over all parameters (torch's clip_grad_norm_)",
    reference="Pascanu, Mikolov & Bengio 2013 (arXiv 1211.5063), section 3.2",
    cost="one pass over the gradient",
    example="clip=1.0",
)
def make(value: str | None) -> Policy:
    """Read NORM.

    Returns:
        The policy.
    """
    (norm,) = fields(value, ["NORM"], required=1)
    return ClipTotalNorm(number(str(norm), "NORM", above=0))
