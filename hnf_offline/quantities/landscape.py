"""The replayed loss around a checkpoint's weights: uphill, under noise, and on the straight way from the one before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CATALOGUE = "training-stability catalogue (source document)"
_LAYERS = "the whole model; tier full, or --landscape"
#: Length of the step uphill, the default of sharpness-aware minimisation.
RADIUS = 0.05
#: Half width of the box of epsilon-sharpness, times |w| + 1 in each direction, and the corners that are tried.
BOX, CORNERS = 1e-3, 4
#: Rise of the loss that noise may cause, nats.
RISE = 0.1
#: Pairs w + n, w - n that a mean over the noise is taken of.
PAIRS = 8
#: Stretches of the straight line between two checkpoints.
STRETCHES = 8


@dataclass(frozen=True, slots=True)
class LargestNoise:
    """The relative noise at which the mean loss has risen by a given amount.

    Attributes:
        value: the standard deviation, as a share of each weight.
        low: of a band that holds 95 % of the mean rises of other noise.
        high: likewise.
        certified: False where the search came to the end of its range, so that the value is a bound.
        evaluations: mean rises that were measured.
    """

    value: float
    low: float
    high: float
    certified: bool
    evaluations: int


@quantity(
    "landscape.local_sharpness",
    unit="nats",
    formula=f"L(w + rho g / ||g||) - L(w), rho = {RADIUS}, g the gradient of all parameters",
    reference="Foret et al. 2021 (arXiv 2010.01412), equation 2 and its default radius; "
    f"{_CATALOGUE}, local sharpness max over ||e|| <= rho",
    tier="full",
    layers=_LAYERS,
    reading="Compare within a run: to first order rho ||g||, and what is above that is curvature along the gradient.",
    cannot="One step to first order and no maximum over the ball, so a lower bound of it; rho is an absolute "
    "length, so models of other size or scale of weights do not compare, and Adam's sharp directions are others.",
)
def local_sharpness(centre_loss: float, ascended_loss: float) -> float:
    """Rise of the loss one short step up its gradient.

    Returns:
        The difference.
    """
    return ascended_loss - centre_loss


@quantity(
    "landscape.epsilon_sharpness",
    unit="%",
    formula=f"100 (max L(w + z) - L(w)) / (1 + L(w)) over the box |z_i| <= e (|w_i| + 1), e = {BOX:g}; the highest of "
    f"up to {CORNERS} corners, each z_i = e (|w_i| + 1) sign(g_i), g the gradient at the corner before",
    reference="Keskar et al. 2017 (arXiv 1609.04836), metric 2.1 with A = I and its epsilon 1e-3 (there ten iterations "
    f"of L-BFGS-B); {_CATALOGUE}, local sharpness max over ||e|| <= rho",
    tier="full",
    layers=_LAYERS,
    reading="Compare within a run, or between runs of one model: larger is sharper. It moves every weight by at least "
    f"{BOX:g}, so it grows with their number.",
    cannot="A lower bound of the maximum: exact where the loss is convex and its curvature has no off-diagonal part, "
    "elsewhere a corner that no step from corner to corner improves, or the last one tried. A loss above the box's "
    "corners, and flatness under a rescaling of layers (Dinh et al. 2017), are not seen.",
)
def epsilon_sharpness(centre_loss: float, highest_loss: float) -> float:
    """Largest relative rise of the loss that was found in a small box around the weights.

    Args:
        centre_loss: at the weights.
        highest_loss: the highest that was found, at least that.

    Returns:
        Percent of 1 + loss.
    """
    return 100.0 * (highest_loss - centre_loss) / (1.0 + centre_loss)


@quantity(
    "landscape.pac_bayes",
    unit="1",
    formula=f"the smallest s > 0 at which the mean of L(w + s |w| z) - L(w) over z ~ N(0, I) is {RISE} nats; "
    f"{PAIRS} pairs z, -z with fixed seeds; on a parabola s^2 = 2 rise / sum_i w_i^2 H_ii",
    reference="Jiang et al. 2020 (arXiv 1912.02178), magnitude-aware PAC-Bayesian flatness (there a rise of 0.1 "
    f"of the training error, and a least noise for weights of 0); {_CATALOGUE}, PAC-Bayesian sharpness "
    "sqrt(tr(H) / 2n), is its parabola",
    tier="full",
    layers=_LAYERS,
    reading="How far all weights may be off at once, as a share of themselves: larger is flatter; .03 means 3 "
    "%. Halving it is four times the curvature.",
    cannot="Not a bound on generalization: no run here says how it relates to a test loss. Weights of 0 stay 0. "
    f"The band (95 %, Student's t) is of {PAIRS} pairs, and wide where a few directions hold the curvature; the "
    "noise is the same at every checkpoint, so that a course is surer than its bands.",
)
def pac_bayes(largest_noise: LargestNoise) -> float:
    """Largest relative noise in the weights that the loss bears.

    Returns:
        The standard deviation relative to the weights.
    """
    return largest_noise.value


@quantity(
    "landscape.linear_barrier",
    unit="nats",
    formula=f"max over a = 0, 1/{STRETCHES}, ..., 1 of L((1 - a) w' + a w) - ((1 - a) L(w') + a L(w)), w' the "
    "weights of the checkpoint before",
    reference="Frankle et al. 2020 (arXiv 1912.05671), instability analysis; Goodfellow et al. 2015 (arXiv "
    f"1412.6544); {_CATALOGUE}, mode connectivity, there along a curve that is learned",
    tier="full",
    layers=f"{_LAYERS}; from the second checkpoint on",
    reading="0: the loss nowhere rises above the straight line between the two losses, as within one basin. "
    "Well above 0: training went around something, or the model's symmetries were passed.",
    cannot="A barrier on the straight line is none for a curve; checkpoints further apart have higher ones by "
    "themselves; one that is narrower than the grid is missed. Running statistics of batch norms are "
    "interpolated too, which makes a barrier by itself: not certified then.",
)
def linear_barrier(path_losses: NDArray[np.float64]) -> float:
    """Highest rise of the loss over the chord between two checkpoints.

    Args:
        path_losses: at evenly spaced places of the straight line, both ends included.

    Returns:
        At least 0; infinite where the loss is not finite between ends that are.
    """
    return barrier_of(path_losses)[0]


def barrier_of(path_losses: NDArray[np.float64]) -> tuple[float, float]:
    """Find the highest rise over the chord, and where it is.

    Args:
        path_losses: at evenly spaced places of the straight line, both ends included.

    Returns:
        The rise and its place a in [0, 1]; infinite at the first place where the loss is not finite.
    """
    import numpy as np

    places = np.linspace(0.0, 1.0, path_losses.size)
    broken = ~np.isfinite(path_losses)
    if broken.any():
        return float("inf"), float(places[broken][0])
    chord = path_losses[0] + places * (path_losses[-1] - path_losses[0])
    rise = path_losses - chord
    rise[-1] = 0.0  # exactly, whatever rounding made of it
    highest = int(rise.argmax())
    return float(rise[highest]), float(places[highest])
