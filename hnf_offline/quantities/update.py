"""The optimizer's next update against the replayed loss: how much longer it could be, and what it will change.

The update u is the whole step w -> w - u: moments with the replayed gradient in them, learning rate, weight decay.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.linalg.line_search import FirstRise

_WHOLE = "the whole model"
_SAO = "Sao 2026, Ghosts of softmax (arXiv 2603.13552)"


@quantity(
    "update.critical_multiple",
    unit="1",
    formula="c* = the smallest c > 0 with L(w - c u) > L(w), u the optimizer's next update",
    reference="Kalra et al. 2026 (arXiv 2601.16979): eta_c / eta of the critical sharpness 2 / eta_c",
    tier="stability",
    layers=_WHOLE,
    bands=(1.0, 2.0),
    reading="Below 1 the next update overshoots: the replayed loss rises on its way. 0: the update points uphill.",
    cannot="It does not warn early: before the five spikes of the sample run spiky it was 2-53 at 14-20 steps, with S "
    "at .94-1.04, and .6-1.5 at 2-8 steps. A rise of the replayed rows, not of the next batch; one that is over "
    "within a factor of two is not seen; clipping is left out; searched from 1/64 to 64 (then a bound, not certified).",
)
def critical_multiple(first_rise: FirstRise) -> float:
    """How many times the next update could be as long before the replayed loss rises.

    Returns:
        The multiple.
    """
    return first_rise.value


@quantity(
    "update.critical_lr",
    unit="parameter / update",
    formula="eta_c = eta c*",
    reference="Kalra et al. 2026 (arXiv 2601.16979): critical sharpness is 2 / eta_c",
    tier="stability",
    layers=_WHOLE,
    reading="The learning rate at which the next update would just raise the replayed loss.",
    cannot="Of one update: a rate below it is no stable rate (optimizer.largest_stable_lr is), and it moves with "
    "every batch; the largest rate stands for several parameter groups.",
)
def critical_learning_rate(learning_rate: float, critical_multiple: float) -> float:
    """Learning rate at which the next update would raise the replayed loss.

    Returns:
        The rate.
    """
    return learning_rate * critical_multiple


@quantity(
    "update.first_order_change",
    unit="nats",
    formula="-g'u",
    reference="Taylor's theorem",
    tier="stability",
    layers=_WHOLE,
    reading="What the slope alone says that the next update does to the replayed loss; above 0 the update "
    "points uphill.",
    cannot="Knows no curvature: update.predicted_change has it, update.measured_change all of it.",
)
def first_order_change(gradient: Tensor, full_update: Tensor) -> Tensor:
    """First-order prediction of the loss change of the next update.

    Returns:
        A scalar.
    """
    return -(gradient @ full_update)


@quantity(
    "update.predicted_change",
    unit="nats",
    formula="-g'u + u'Hu / 2",
    reference="Taylor's theorem; compare Bai et al. 2026 (arXiv 2506.04805)",
    tier="stability",
    layers=_WHOLE,
    reading="What slope and curvature say that the next update does to the replayed loss; above 0 it rises.",
    cannot="Knows no third derivative: beside update.measured_change it shows where a parabola stops being the loss.",
)
def predicted_change(gradient: Tensor, full_update: Tensor, hessian_full_update: Tensor) -> Tensor:
    """Second-order prediction of the loss change of the next update.

    Returns:
        A scalar.
    """
    return -(gradient @ full_update) + full_update @ hessian_full_update / 2


@quantity(
    "update.measured_change",
    unit="nats",
    formula="L(w - u) - L(w) on the replayed rows",
    reference="definition",
    tier="stability",
    layers=_WHOLE,
    reading="What the next update does to the loss of the rows it was computed on.",
    cannot="Not what training did where its next batch was another one, or the gradient was clipped.",
)
def measured_change(loss: float, loss_after_update: float) -> float:
    """Loss change of the next update on the replayed rows.

    Returns:
        The difference.
    """
    return loss_after_update - loss


@quantity(
    "update.logged_change",
    unit="nats",
    formula="logged loss of step s + 2 minus that of step s + 1, for the checkpoint of step s",
    reference="definition: the loss logged at step s + 1 is that of the weights of step s",
    tier="stability",
    layers=_WHOLE,
    reading="What training saw of the same update. With one batch for all steps it is update.measured_change.",
    cannot="Mixes batches: the two losses are of the two steps' own batches, whose difference is mostly larger than "
    "the update's.",
)
def logged_change(logged_loss: float, logged_loss_after_update: float) -> float:
    """Difference of the two logged losses on either side of the next update.

    Returns:
        The difference.
    """
    return logged_loss_after_update - logged_loss


@quantity(
    "update.ghost_ratio",
    unit="1",
    formula="r = max over tokens of ||u|| D_a / pi, D_a = max_k a_k - min_k a_k, a_k = grad z_k . u / ||u||",
    reference=_SAO,
    tier="stability",
    layers=_WHOLE,
    bands=(1.0,),
    reading="Below 1 the update stays within the radius in which the softmax equals its Taylor series, at every token.",
    cannot="Above 1 nothing has to happen: the radius pi / D_a is a lower bound (sqrt(d^2 + pi^2) / D_a for two "
    "classes of margin d), and one token decides. Not certified: by finite differences.",
)
def ghost_ratio(logit_change_span: Tensor) -> Tensor:
    """Length of the next update against the softmax's radius of convergence, at the worst token.

    Returns:
        A scalar.
    """
    return logit_change_span.amax() / math.pi


@quantity(
    "update.ghost_ratio_q99",
    unit="1",
    formula="99 % quantile over tokens of ||u|| D_a / pi (the smallest value that 99 % of tokens do not exceed)",
    reference=_SAO,
    tier="stability",
    layers=_WHOLE,
    bands=(1.0,),
    reading="update.ghost_ratio without its most extreme token in a hundred.",
    cannot="As update.ghost_ratio; the same as it below a hundred tokens.",
)
def ghost_ratio_99(logit_change_span: Tensor) -> Tensor:
    """Length of the next update against the softmax's radius of convergence, at the 99 % quantile of tokens.

    Returns:
        A scalar.
    """
    count = logit_change_span.numel()
    return logit_change_span.kthvalue(max(1, math.ceil(0.99 * count))).values / math.pi
