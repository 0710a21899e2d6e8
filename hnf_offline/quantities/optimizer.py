"""What the saved optimizer state adds: step metric, lag of the second moment, headroom.

The step metric A is the diagonal matrix for which S = lambda_max(A^1/2 H A^1/2) is 1 exactly at the edge of
stability of the optimizer on a quadratic. Learning rates and betas may differ between parameters; they are
inside A.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.linalg.vectors import length
from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from torch import Tensor


def adam_step_metric(learning_rate: float, beta1: float, second_moment: Tensor, eps: float) -> Tensor:
    """Step metric of Adam and AdamW: eta (1 - b1) / (2 (1 + b1)) / (sqrt(v_hat) + eps).

    On a quadratic with curvature h and constant v, Adam with an EMA momentum is stable as long as
    eta h / (sqrt(v_hat) + eps) < 2 (1 + b1) / (1 - b1), which is 38 at b1 = 0.9.

    Returns:
        The diagonal, shaped as `second_moment` (bias-corrected).

    Source: Cohen et al. 2022, Adaptive gradient methods at the edge of stability (arXiv 2207.14484), section 3.
    """
    return learning_rate * (1 - beta1) / (2 * (1 + beta1)) / (second_moment.sqrt() + eps)


def sgd_step_size(
    learning_rate: float, momentum: float = 0.0, dampening: float = 0.0, nesterov: bool = False
) -> float:
    """Step metric of SGD, heavy ball and Nesterov: the inverse of the largest stable curvature.

    SGD eta / 2; heavy ball eta / (2 (1 + b)); Nesterov eta (1 + 2 b) / (2 (1 + b)). Dampening scales eta.

    Returns:
        The scalar that stands on the diagonal of A.

    Source: Cohen et al. 2021 (arXiv 2103.00065), appendix B.
    """
    effective = learning_rate * (1 - dampening if momentum else 1.0)
    return effective * ((1 + 2 * momentum) if nesterov else 1.0) / (2 * (1 + momentum))


@quantity(
    "adam.lag_rms",
    unit="1",
    formula="RMS_t = sqrt(mean_i g_i^2 / max(v_hat_i, eps^2))",
    reference="Wortsman et al. 2023, Stable and low-precision training (arXiv 2304.13013), section 3",
    tier="gradient",
    layers="every layer and the whole model; Adam only",
    bands=(2.3,),
    reading="About 1 when the second moment keeps up; above 2.3 Adam under-estimates the gradients it now sees.",
    cannot="Leads by 1-8 steps at most; at an edge-of-stability climb it stays near 1.",
)
def adam_lag_rms(gradient: Tensor, second_moment: Tensor, epsilon: Tensor) -> Tensor:
    """How far the gradient has outgrown Adam's second moment.

    Returns:
        A scalar.
    """
    lag: Tensor = length(gradient / second_moment.sqrt().clamp_min(epsilon)) / gradient.numel() ** 0.5
    return lag


@quantity(
    "adam.epsilon_share",
    unit="share",
    formula="share of entries with sqrt(v_hat_i) < eps among those with v_hat_i > 0 and g_i other than 0",
    reference="Wortsman et al. 2023, Small-scale proxies (arXiv 2309.14322)",
    tier="gradient",
    layers="every layer and the whole model; Adam only",
    bands=(0.5,),
    reading="There eps bounds the update: it is shorter than the learning rate says, and shrinks with the gradient.",
    cannot="Entries whose gradient is only rounding (key biases) count too; those that the replayed rows do not move "
    "(tokens that are not among them, units that are off) do not: their v_hat fades by itself.",
)
def adam_epsilon_share(second_moment: Tensor, epsilon: Tensor, gradient: Tensor) -> Tensor:
    """Share of a layer's entries whose update Adam's epsilon bounds.

    Returns:
        A scalar in [0, 1].
    """
    felt = (second_moment > 0) & (gradient != 0)
    return (felt & (second_moment.sqrt() < epsilon)).sum() / felt.sum().clamp_min(1)


@quantity(
    "optimizer.learning_rate",
    unit="parameter / update",
    formula="eta as saved with the optimizer state (the largest over parameter groups): the rate of the next update",
    reference="definition",
    tier="gradient",
    layers="the whole model",
    reading="The rate that S, headroom and the largest stable rate are stated for.",
    cannot="With several parameter groups one number cannot show them all; S itself uses each group's own rate.",
)
def saved_learning_rate(learning_rate: float) -> float:
    """Learning rate of the next update.

    Returns:
        The rate.
    """
    return learning_rate


@quantity(
    "optimizer.headroom",
    unit="1",
    formula="1 / S",
    reference="Cohen et al. 2022 (arXiv 2207.14484): S is proportional to the learning rate",
    tier="stability",
    layers="the whole model",
    reading="The largest factor the learning rate could be multiplied with at this checkpoint; below 1 it is too high.",
    cannot="Stable at this checkpoint, not for ever: sharpness goes on changing, mostly upwards.",
)
def headroom(stability_ratio: float) -> float:
    """Largest safe multiplier of the learning rate at this checkpoint.

    Returns:
        The multiplier.
    """
    return 1.0 / stability_ratio


@quantity(
    "optimizer.largest_stable_lr",
    unit="parameter / update",
    formula="eta / S",
    reference="Cohen et al. 2022 (arXiv 2207.14484)",
    tier="stability",
    layers="the whole model",
    reading="The learning rate at which this checkpoint would stand at the edge of stability.",
    cannot="Local in time; under strong minibatch noise trouble begins below it.",
)
def largest_stable_learning_rate(learning_rate: float, stability_ratio: float) -> float:
    """Learning rate at which S would be 1.

    Returns:
        The rate.
    """
    return learning_rate / stability_ratio
