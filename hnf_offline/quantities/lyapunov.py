"""How fast a small change of the weights grows under the optimizer itself, in the direction of largest curvature."""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass

from hnf_offline.quantities.registry import quantity


@dataclass(frozen=True, slots=True)
class Mode:
    """The direction of largest preconditioned curvature, and the momentum it is moved with.

    Attributes:
        stability_ratio: S, the curvature in units of the optimizer's stability limit.
        momentum: b, Adam's beta1 or SGD's momentum, in [0, 1).
        nesterov: whether the momentum looks ahead.
    """

    stability_ratio: float
    momentum: float
    nesterov: bool = False

    @property
    def quietest(self) -> float:
        """The S at which a perturbation dies away fastest; towards either side it does so more slowly."""
        return (1 + 2 * self.momentum) / (2 * (1 + self.momentum)) if self.nesterov else 0.5


@quantity(
    "lyapunov.local_rate",
    unit="1 / update",
    formula="ln max|mu|, mu the roots of mu^2 - (1 + b)(1 - 2 S) mu + b = 0, b = beta1 (Adam) or the momentum "
    "(SGD); with Nesterov's of mu^2 - (1 + b)(1 - x) mu + b (1 - x) = 0, x = 2 (1 + b) S / (1 + 2 b)",
    reference="Benettin et al. 1980 (Meccanica 15, 9-20), of one step: companion matrix of the linearised "
    "update. Limit of stability: Cohen et al. 2022 (arXiv 2207.14484)",
    tier="stability",
    layers="the whole model; where all parameters have one momentum",
    reading="Above 0 (exactly where S is above 1) a change along the sharpest direction grows by e to this "
    "power at every update; below 0 it dies away. Its inverse is a number of updates. At b = .9 it is ln(b) / 2 for "
    "nearly all S below 1.",
    cannot="Local in time, of one direction, on a parabola, with the second moment held still and without "
    "weight decay: no limit over the run, and growth ends where the loss bends. Flat directions (0) and those "
    "of negative curvature (slow growth) are left out. The twins of hnf whatif measure how fast a run really "
    "parts from itself.",
)
def local_rate(mode: Mode) -> float:
    """Local Lyapunov rate along the sharpest direction.

    Returns:
        The rate; minus infinity where one update ends the perturbation.
    """
    b, ratio = mode.momentum, mode.stability_ratio
    if not math.isfinite(ratio):
        return math.nan if math.isnan(ratio) else math.inf
    step = 2 * (1 + b) * ratio / (1 + 2 * b)
    trace, determinant = (
        ((1 + b) * (1 - step), b * (1 - step)) if mode.nesterov else ((1 + b) * (1 - 2 * ratio), b)
    )
    root = cmath.sqrt(trace * trace - 4 * determinant)
    radius = max(abs(trace + root), abs(trace - root)) / 2
    return math.log(radius) if radius > 0 else -math.inf
