"""ZClip: clip only the gradient norms that stand out from the recent ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hnf_offline.rerun.policies.arguments import fields, number
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.rerun.training import Training

#: Norms that the first mean and variance are taken over.
WARM_UP = 25
#: Keeps z finite where all norms were alike.
SMALLEST_DEVIATION = 1e-6


class ClipOutstandingNorm(Policy):
    """Clip a norm whose z-score is above a threshold, the harder the further out it is.

    The statistics begin with the log's gradient norms up to the checkpoint, so that the policy knows what it would
    have known had it been there from the start; where the log has fewer than 25, they are gathered first and nothing
    is clipped meanwhile. A norm that is not finite is left alone and left out.

    Attributes:
        threshold: z above which a norm is clipped.
        alpha: how slowly mean and variance forget.
        mean: mean of the norms, those clipped counted as clipped; None while gathering.
        variance: their variance.
    """

    def __init__(self, threshold: float, alpha: float) -> None:
        self.threshold = threshold
        self.alpha = alpha
        self.mean: float | None = None
        self.variance = 0.0
        self._gathered: list[float] = []

    def begin(self, training: Training) -> None:
        """Switch the run's own clipping off, and learn from the norms before the checkpoint."""
        training.clip = None
        self.mean, self.variance, self._gathered = None, 0.0, []
        if training.log is None:
            return
        for step, norm in training.log.rows.select("step", "grad_norm").drop_nulls().iter_rows():
            if step <= training.step:
                self.bound(norm)

    def gradients(self, training: Training, step: int, norm: Tensor) -> None:
        """Scale the gradient down where its norm stands out."""
        from torch.nn.utils import clip_grads_with_norm_

        present = training.gradient_norm()  # a policy before this one may have changed the gradient
        bound = self.bound(float(present))
        if bound is not None:
            clip_grads_with_norm_(training.parameters, bound, present)

    def bound(self, norm: float) -> float | None:
        """Judge the next norm and learn from it.

        Returns:
            mean + Z^2 / z deviations if z = (norm - mean) / deviation exceeds Z; None to leave it.
        """
        if not math.isfinite(norm):
            return None
        if self.mean is None:
            self._gathered.append(norm)
            if len(self._gathered) == WARM_UP:
                self.mean = sum(self._gathered) / WARM_UP
                self.variance = sum((one - self.mean) ** 2 for one in self._gathered) / WARM_UP
            return None
        deviation = math.sqrt(self.variance)
        z = (norm - self.mean) / (deviation + SMALLEST_DEVIATION)
        clipped = self.mean + self.threshold**2 / z * deviation if z > self.threshold else None
        counted = norm if clipped is None else clipped
        self.mean = self.alpha * self.mean + (1 - self.alpha) * counted
        self.variance = self.alpha * self.variance + (1 - self.alpha) * (counted - self.mean) ** 2
        return clipped


@policy(
    "zclip",
    value="[Z[,ALPHA]]",
    summary="Clip only gradient norms that stand out: more than Z deviations above their running mean (2.5, .97).",
    formula=(
        "z = (||g|| - mu) / sigma; if z > Z: g <- g (mu + sigma Z^2 / z) / ||g||; mu <- ALPHA mu + (1 - ALPHA) ||g||, "
        "sigma^2 <- ALPHA sigma^2 + (1 - ALPHA) (||g|| - mu)^2 of the clipped norm; first 25 norms from the log"
    ),
    reference="Kumar et al. 2025, ZClip (arXiv 2504.02507) and its published code; instead of the run's own clipping",
    cost="one pass over the gradient and one number read from the device",
    example="zclip=2.5,0.97",
)
def make(value: str | None) -> Policy:
    """Read Z and ALPHA.

    Returns:
        The policy.
    """
    threshold, alpha = fields(value, ["Z", "ALPHA"], required=0)
    return ClipOutstandingNorm(
        number(threshold or "2.5", "Z", above=0), number(alpha or "0.97", "ALPHA", least=0, below=1)
    )
