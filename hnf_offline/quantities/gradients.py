"""The gradient of the replayed loss.

`gradient` is one layer's (or the whole model's), flattened; `weight`, `moment`, `second_moment` and `next_update`
are the weights, the optimizer's moments and its next update in the same order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.linalg.vectors import cosine, length
from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Floats = NDArray[np.float64]

_CATALOGUE = "training-stability catalogue (source document)"


@quantity(
    "gradient.norm",
    unit="loss / parameter",
    formula="||g_l||_2 of the mean replayed loss",
    reference="definition; training-stability catalogue (source document), gradient norm tracking",
    tier="gradient",
    layers="every layer and the whole model",
    reading="Compare a layer with its own past; it is at its minimum just before an edge-of-stability spike.",
    cannot="Cannot warn of those spikes, and names the wrong layer when a step size is at fault.",
)
def gradient_norm(gradient: Tensor) -> Tensor:
    """Euclidean norm of the gradient.

    Returns:
        A scalar.
    """
    return length(gradient)


@quantity(
    "gradient.ema_ratio",
    unit="1",
    formula="||g_l|| / sqrt(sum_i v_hat_i), v_hat Adam's bias-corrected second moment",
    reference=f"{_CATALOGUE}, gradient norm ratio g_t / EMA(g_t); the average that Adam has saved, of squared "
    "norms with "
    "beta2, stands for the EMA",
    tier="gradient",
    layers="every layer and the whole model; Adam only",
    reading="About 1 in steady training; well above 1: this gradient is larger than those of the last 1 / (1 "
    "- beta2) steps.",
    cannot="Below 1 when more rows are replayed than a training batch holds: averaging takes noise away.",
)
def gradient_ema_ratio(gradient: Tensor, second_moment: Tensor) -> Tensor:
    """Gradient norm relative to the root of its exponential mean square.

    Returns:
        A scalar.
    """
    return length(gradient) / length(second_moment.sqrt())


@quantity(
    "gradient.momentum_cosine",
    unit="1",
    formula="<g_l, m_l> / (||g_l|| ||m_l||), m the saved first moment (Adam) or momentum buffer (SGD)",
    reference=f"{_CATALOGUE}, cosine similarity between steps; Molybog et al. 2023 (arXiv 2304.09871), section 3",
    tier="gradient",
    layers="every layer and the whole model; where the optimizer saved a first moment",
    reading="Positive: the gradient goes on as before; near -1: it turns back at every step, as in oscillation.",
    cannot="The moment holds other batches than the replayed ones: noise draws the cosine to 0.",
)
def momentum_cosine(gradient: Tensor, moment: Tensor) -> Tensor:
    """Cosine between the gradient and the average of those before it.

    Returns:
        A scalar, NaN where either is 0.
    """
    return cosine(gradient, moment)


@quantity(
    "gradient.flow_ratio",
    unit="1",
    formula="||g_l|| / ||g_k||, k the layer of the same kind and shape one block later",
    reference=f"{_CATALOGUE}, gradient flow ratio ||g_l|| / ||g_(l+1)||, which divides layers of different "
    "kinds and sizes",
    tier="gradient",
    layers="layers that have one of their kind and shape in a later block",
    reading="Near 1: gradients pass the block unchanged; below 1 in every block they vanish towards the input.",
    cannot="One block's ratio is noise of its own; see gradient.depth_factor for all of them.",
)
def gradient_flow_ratio(gradient: Tensor, later_gradient: Tensor) -> Tensor:
    """Gradient norm of a layer relative to that of its like in the next block.

    Returns:
        A scalar.
    """
    return length(gradient) / length(later_gradient)


@quantity(
    "gradient.depth_factor",
    unit="1",
    formula="exp(-b), b the least-squares slope of ln ||g|| against the number of the block, ||g|| the norm "
    "over all of a "
    "block's parameters: the factor by which gradients grow from one block to the one before it",
    reference=f"{_CATALOGUE}, vanishing and exploding gradients, log ||g_l|| against l",
    tier="gradient",
    layers="the whole model; three blocks or more",
    reading="Above 1 and its interval too: they grow towards the input (exploding); below 1 they vanish.",
    cannot="A straight line says little of few blocks: the interval is Student's 95 % of the fit, not of the "
    "batch.",
)
def gradient_depth_factor(block_gradient_norms: Floats) -> tuple[float, float, float]:
    """Factor of the gradient norm from one block to the block before it.

    Args:
        block_gradient_norms: [blocks], in forward order, at least three, all above 0.

    Returns:
        Value, and lower and upper end of its 95 % interval.
    """
    import numpy as np

    slope, error = slope_of(np.log(block_gradient_norms))
    return float(np.exp(-slope)), float(np.exp(-slope - error)), float(np.exp(-slope + error))


def slope_of(values: Floats) -> tuple[float, float]:
    """Fit a straight line to values at 0, 1, 2, ...

    Args:
        values: [n], n of at least 3.

    Returns:
        The slope, and half of its 95 % interval (Student's t with n - 2 degrees of freedom).
    """
    import numpy as np
    from scipy.stats import t

    place = np.arange(values.size) - (values.size - 1) / 2
    slope = float(place @ values / (place @ place))
    residual = values - values.mean() - slope * place
    variance = float(residual @ residual) / (values.size - 2) / float(place @ place)
    return slope, float(t.ppf(0.975, values.size - 2)) * variance**0.5


@quantity(
    "gradient.effective_lr",
    unit="parameter^2 / loss",
    formula="||u_l|| / ||g_l||, u the optimizer's next update in full (moments with the replayed gradient in them, "
    "learning rate, weight decay)",
    reference=f"{_CATALOGUE}, effective learning rate ||theta_(t+1) - theta_t|| / ||g_t||",
    tier="gradient",
    layers="every layer and the whole model; where the optimizer's state is saved",
    reading="The learning rate that plain gradient descent would need for a step of this length; layers "
    "differ widely "
    "under Adam.",
    cannot="A long step may be harmless and a short one not: see S and the critical step size.",
)
def effective_learning_rate(next_update: Tensor, gradient: Tensor) -> Tensor:
    """Length of the next update relative to the gradient.

    Returns:
        A scalar.
    """
    return length(next_update) / length(gradient)


@quantity(
    "gradient.next_update_ratio",
    unit="1",
    formula="||u_l|| / ||w_l||, u the optimizer's next update in full",
    reference=f"{_CATALOGUE}, relative change, of a single step",
    tier="gradient",
    layers="every layer and the whole model; where the optimizer's state is saved",
    reading="About 1e-3 is a common rule; layers far above the others are those that change their function at "
    "every step.",
    cannot="Of norm gains and biases near 0 it is large by itself.",
)
def next_update_ratio(next_update: Tensor, weight: Tensor) -> Tensor:
    """Length of the next update relative to the weights.

    Returns:
        A scalar.
    """
    return length(next_update) / length(weight)


@quantity(
    "gradient.check_error",
    unit="1",
    formula="max over directions of |a - n| / (|a| + |n|), a = <g, v>, n = (L(w + e v) - L(w - e v)) / 2 e, "
    "in float64, v "
    "random and of unit length, with e = 1e-6 ||w||",
    reference=f"{_CATALOGUE}, gradient checking, which takes single parameters for v",
    tier="gradient",
    layers="the whole model; with --gradient-check",
    reading="Below about 1e-6 the gradient is that of the loss; near 1 something cuts or changes it on the "
    "way back.",
    cannot="Eight directions see an error that is spread, hardly one in a few parameters; kinks (ReLU) add some.",
)
def gradient_check_error(analytic: Floats, numeric: Floats) -> float:
    """Largest relative error of directional derivatives.

    Args:
        analytic: [directions], <g, v>.
        numeric: [directions], central differences.

    Returns:
        Between 0 and 1.
    """
    import numpy as np

    size = np.abs(analytic) + np.abs(numeric)
    return float(np.max(np.divide(np.abs(analytic - numeric), size, out=np.zeros_like(size), where=size > 0)))
