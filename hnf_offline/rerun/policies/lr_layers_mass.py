"""Per-layer learning rates from the layers' shares of the unstable direction."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hnf_offline.rerun.policies.arguments import fields, number, whole
from hnf_offline.rerun.policies.layer_units import Unit, scales_of, units_of
from hnf_offline.rerun.policies.looking import COST_OF_S, EVERY, LooksAtStability
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hnf_offline.rerun.training import Stability, Training

#: S may end this much above the target; nearer costs another measurement and is within its residual.
TOLERANCE = 0.05
#: Most measurements of S at one look.
ROUNDS = 12


class LayersByMass(LooksAtStability):
    """Slow down the layers that the unstable direction lives in, until S is at a target.

    Let v be the unit eigenvector of S = lambda_max(M), M = A^1/2 H A^1/2, and m_l = |v_l|^2 a layer's share of it
    (they sum to 1). Factors f_l make it M' = F^1/2 M F^1/2, and w = F^-1/2 v shows
    S' >= w'M'w / w'w = S / sum_l(m_l / f_l). So S' can only fall to TARGET if sum_l m_l / f_l >= r = S / TARGET. Of
    all factors with equality, the ones that slow layers down least (smallest sum of (1/f_l - 1)^2) are

        1 / f_l = 1 + (r - 1) m_l / sum_k m_k^2.

    If v lives in one layer, that layer alone gets TARGET / S; if it is spread evenly, all do: both end at TARGET.
    In between the direction turns into layers not yet slowed and S' is above TARGET, so S is measured again and the
    step repeated. S falls at every round and the layer with the largest share falls by at least r, so it gets there;
    where 12 rounds are too few (many layers, each unstable by itself), all layers take what is left in equal parts.

    Layers that share a parameter (a fused query-key-value projection) are one: their shares are added, and the
    parameter takes the factor of the sum. At every look the factors start again from 1: they follow the curvature
    down as well as up.

    Attributes:
        target: S that is aimed at.
        floor: smallest factor of a layer.
        slope: S divided by the learning rate where the last look ended.
        reached: S where the last look ended.
    """

    def __init__(self, target: float, floor: float, every: int) -> None:
        self.target = target
        self.floor = floor
        self.every = every
        self.slope = 0.0
        self.reached = 0.0

    def before(self, training: Training, step: int) -> None:
        """Look when it is time, and also when the schedule alone has taken S past the target."""
        bound = (1 + TOLERANCE) * max(self.target, self.reached)
        if self.seen and self.slope * training.learning_rate_of(step) > bound:
            self.seen = False
        super().before(training, step)

    def look(self, training: Training, step: int) -> bool:
        """Find the factors for the present weights.

        Returns:
            Whether S could be measured.
        """
        units = units_of(training.module)
        factors = [1.0] * len(units)
        training.scale_parameters({})
        stability = training.stability()
        if stability is None:
            return False
        ratio = stability.ratio
        for measured in range(1, ROUNDS + 1):
            if not (math.isfinite(ratio) and ratio > (1 + TOLERANCE) * self.target):
                break
            if measured < ROUNDS:
                lower = self._lowered(factors, units, stability)
            else:
                lower = [max(self.floor, factor * self.target / ratio) for factor in factors]
            if lower == factors:  # all at the floor
                break
            factors = lower
            training.scale_parameters(scales_of(units, factors))
            stability = training.stability() or stability
            ratio = stability.ratio
        rate = training.learning_rate_of(step)
        self.reached = ratio if math.isfinite(ratio) else self.target
        self.slope = self.reached / rate if rate > 0 else 0.0
        return rate > 0

    def _lowered(self, factors: Sequence[float], units: Sequence[Unit], stability: Stability) -> list[float]:
        shares = [sum(stability.mass.get(path, 0.0) for path in unit.layers) for unit in units]
        squares = sum(share**2 for share in shares)
        if not math.isfinite(squares) or not squares > 0:
            return list(factors)
        excess = stability.ratio / self.target - 1
        return [
            max(self.floor, factor / (1 + excess * share / squares))
            for factor, share in zip(factors, shares, strict=True)
        ]


@policy(
    "lr-layers-mass",
    value="[TARGET[,FLOOR[,EVERY]]]",
    summary="Slow down the layers that the unstable direction lives in until S is at TARGET; the others stay.",
    formula=(
        "eta_l <- eta / (1 + (S/TARGET - 1) m_l / sum_k m_k^2), at least FLOOR eta, repeated until S <= 1.05 TARGET; "
        "m_l = share of the layer in the top eigenvector of A^1/2 H A^1/2; every EVERY steps"
    ),
    reference=("this project: Rayleigh quotient of the scaled operator; defaults .8, .02, 8"),
    cost=f"every EVERY steps 1-13 times {COST_OF_S}, mostly 2-3 times",
    example="lr-layers-mass=0.8,0.02,8",
)
def make(value: str | None) -> Policy:
    """Read TARGET, FLOOR and EVERY.

    Returns:
        The policy.
    """
    target, floor, every = fields(value, ["TARGET", "FLOOR", "EVERY"], required=0)
    return LayersByMass(
        number(target or "0.8", "TARGET", above=0),
        number(floor or "0.02", "FLOOR", least=0, most=1),
        whole(every or str(EVERY), "EVERY"),
    )
