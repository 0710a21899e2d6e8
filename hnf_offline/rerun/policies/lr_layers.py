"""Per-layer learning rates from per-layer curvature: the source document's formula, as it is meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.errors import UsageError
from hnf_offline.rerun.policies.arguments import fields, number, whole
from hnf_offline.rerun.policies.layer_units import scales_of, units_of
from hnf_offline.rerun.policies.looking import EVERY, LooksAtStability
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy

if TYPE_CHECKING:
    from hnf_offline.rerun.training import Training


class LayersByCurvature(LooksAtStability):
    """Slow every layer down by its own curvature.

    The source document writes lr_l = base_lr / (1 + kappa_l / 1e4): a layer whose curvature is 1e4 gets half the
    rate. Its kappa has the wrong operator and no scale of its own; what matters for a step is the curvature of the
    loss in the layer's parameters as the optimizer sees it, S_l = lambda_max(A_l^1/2 H_ll A_l^1/2), whose scale is
    1 by definition. Afterwards the layer's own ratio is S_l / (1 + S_l / HALF), below HALF for every layer, and S
    of the whole model is no larger than before. But an instability that is spread over many layers shows in none of
    them: each S_l may be a few hundredths while S is 1, and then this formula hardly acts (lr-layers-mass does).
    A weight that several layers share (a fused query-key-value
    projection) takes the smallest factor of its parts.

    Attributes:
        half: S_l at which a layer gets half the rate.
    """

    def __init__(self, half: float, every: int) -> None:
        self.half = half
        self.every = every

    def look(self, training: Training, step: int) -> bool:
        """Measure S of every layer at the run's own rates, and set the layers' rates from it.

        Returns:
            Whether S could be measured.

        Raises:
            UsageError: if only S of the whole model can be measured.
        """
        training.scale_parameters({})
        stability = training.stability()
        if stability is None:
            return False
        if stability.layers is None:
            raise UsageError(
                "the layers' own stability ratios are not measured here",
                remedy="lr-layers-mass needs only S of the whole model",
            )
        ratios = stability.layers()
        units = units_of(training.module)
        factors = [min(self._factor(ratios.get(path, 0.0)) for path in unit.layers) for unit in units]
        training.scale_parameters(scales_of(units, factors))
        return True

    def _factor(self, ratio: float) -> float:
        # Negative curvature cannot make a step unstable, and what is no number tells nothing about the layer.
        return 1 / (1 + ratio / self.half) if ratio > 0 else 1.0


@policy(
    "lr-layers",
    value="[HALF[,EVERY]]",
    summary="Each layer's learning rate falls with its own curvature: half of it where the layer's S is HALF (1).",
    formula="eta_l <- eta / (1 + S_l / HALF), S_l = lambda_max(A_l^1/2 H_ll A_l^1/2) at eta, every EVERY steps",
    reference=(
        "the source document's compute_per_layer_lr, base_lr / (1 + kappa / 1e4), with its curvature replaced by the "
        "stability ratio of the layer's block; decoupled weight decay of a layer falls with its rate"
    ),
    cost="every EVERY steps S of every layer: about a checkpoint of tier curvature (50-250 forward passes)",
    example="lr-layers=1,8",
)
def make(value: str | None) -> Policy:
    """Read HALF and EVERY.

    Returns:
        The policy.
    """
    half, every = fields(value, ["HALF", "EVERY"], required=0)
    return LayersByCurvature(number(half or "1", "HALF", above=0), whole(every or str(EVERY), "EVERY"))
