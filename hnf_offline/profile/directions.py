"""Curvature along two directions that matter, the gradient and the update, and what the next update will do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hnf_offline.linalg.hessian import Block
from hnf_offline.linalg.line_search import FirstRise, first_rise, quadratic_guess
from hnf_offline.profile.along import Ray, Replay, logit_change
from hnf_offline.profile.metric import largest_learning_rate, next_update
from hnf_offline.profile.subject import Subject
from hnf_offline.profile.update import full_update
from hnf_offline.quantities.registry import computable
from hnf_offline.table import Row

#: Units of rounding, relative to the loss, that a difference of two replayed losses may be off.
ROUNDING = 4
#: A slope below this share of sum |g_i u_i| has cancelled down to rounding: its sign is not known.
CANCELLED = 1e-4
#: Two derivatives along the update agree when they differ by less than this share of sum |g_i u_i|.
AGREES = 1e-2
#: Products of the whole model for directions: along gradient, update, and the update with its weight decay.
DIRECTION_PRODUCTS = 3
#: Forward passes for the next update beside them: losses before and after, search, derivative of the logits.
UPDATE_FORWARDS = 2 + 5 + 2


def direction_rows(
    subject: Subject, gradients: Mapping[str, Tensor], whole: Block, flat_metric: Tensor
) -> list[Row]:
    """Measure curvature along gradient and update in units of the stability limit, and the next update itself.

    Args:
        subject: module, rows and optimizer state.
        gradients: of the replayed loss, by parameter name.
        whole: the Hessian of all layers.
        flat_metric: the step metric A in the order of `whole`, [dimension].

    Returns:
        `hessian.gradient_direction`, `hessian.update_direction` and the family `update`, as far as the optimizer's
        state lets them be known.
    """
    return _quotient_rows(subject, gradients, whole, flat_metric) + update_rows(subject, gradients, whole)


def _quotient_rows(
    subject: Subject, gradients: Mapping[str, Tensor], whole: Block, flat_metric: Tensor
) -> list[Row]:
    assert subject.optimizer is not None
    gradient = whole.flatten(gradients)
    moved = flat_metric > 0  # what the optimizer moves at all: the quotients divide by the metric
    observations = {"gradient": gradient[moved], "step_metric": flat_metric[moved]}
    if bool(gradient[moved].any()):
        observations["hessian_gradient"] = whole(gradient)[moved]
    if subject.optimizer.moments_known:
        update = whole.flatten(next_update(subject.optimizer, gradients))
        observations["update"] = update[moved]
        if bool(update[moved].any()):
            observations["hessian_update"] = whole(torch.where(moved, update, 0.0))[moved]
    return _rows(subject, observations)


def update_rows(subject: Subject, gradients: Mapping[str, Tensor], whole: Block) -> list[Row]:
    """Measure the next update: predicted and measured change of the loss, critical multiple, ghost ratio.

    Args:
        subject: module, rows and optimizer state.
        gradients: of the replayed loss, by parameter name.
        whole: the Hessian of all layers.

    Returns:
        Rows of the family `update`; empty where the update is not known or is zero.
    """
    assert subject.optimizer is not None
    update = full_update(subject.optimizer, gradients, dict(subject.module.named_parameters()))
    if update is None:
        return []
    step, gradient = whole.flatten(update), whole.flatten(gradients)
    curved = whole(step)
    size, slope, curvature, scale = torch.stack([
        step.abs().sum(), -(gradient @ step), step @ curved, (gradient * step).abs().sum()
    ]).tolist()  # fmt: skip
    if size == 0.0:
        return []
    ray = Ray(Replay(subject.module), subject.batches, update)
    loss = ray.loss(0.0)
    noise = ROUNDING * torch.finfo(step.dtype).eps * abs(loss)
    change = cache(lambda multiple: ray.loss(multiple) - loss)
    after = change(1.0)
    found = _first_rise(change, slope, curvature, scale, noise)
    return [
        *_rows(subject, {"gradient": gradient, "full_update": step, "hessian_full_update": curved}),
        *_rows(subject, {"loss": loss, "loss_after_update": loss + after}, (after - noise, after + noise)),
        *_critical_rows(subject, found),
        *_ghost_rows(subject, ray, slope, scale),
    ]


def _first_rise(
    change: Callable[[float], float], slope: float, curvature: float, scale: float, noise: float
) -> FirstRise:
    if not math.isfinite(slope):
        return FirstRise(math.nan, math.nan, math.nan, False, 0)
    if slope >= 0:  # uphill from the first inch on: nothing to search
        return FirstRise(0.0, 0.0, 0.0, slope > CANCELLED * scale, 0)
    return first_rise(change, quadratic_guess(slope, curvature), noise=noise)


def _critical_rows(subject: Subject, found: FirstRise) -> list[Row]:
    bracket = (found.low, found.high)
    rows = _rows(subject, {"first_rise": found}, bracket, found.certified)
    rate = None if subject.optimizer is None else largest_learning_rate(subject.optimizer)
    if rate is None:
        return rows
    scaled = (rate * found.low, rate * found.high)
    offered = {"learning_rate": rate, "critical_multiple": found.value}
    return rows + _rows(subject, offered, scaled, found.certified)


def _ghost_rows(subject: Subject, ray: Ray, slope: float, scale: float) -> list[Row]:
    found = logit_change(ray)
    if found is None:
        return []
    # The same pass gives the slope of the loss: where it is not that of the gradient, a tangent was lost on the way.
    certified = found.exact and abs(found.slope - slope) <= AGREES * scale
    return _rows(subject, {"logit_change_span": found.span.cpu()}, certified=certified)


def logged_change_rows(logged: Mapping[int, float], step: int) -> list[Row]:
    """Hold the two logged losses on either side of a checkpoint's next update against each other.

    Args:
        logged: step -> loss of the log; the loss of step s is that of the weights of checkpoint s - 1.
        step: the checkpoint's step.

    Returns:
        One row of `update.logged_change`; none where the log lacks one of the two.
    """
    before, after = logged.get(step + 1), logged.get(step + 2)
    if before is None or after is None:
        return []
    observations = {"logged_loss": before, "logged_loss_after_update": after}
    return [
        Row(step, "", "model", -1, entry.name, float(entry.function(**observations)))
        for entry in computable(frozenset(observations), "stability")
    ]


def _rows(
    subject: Subject,
    observations: Mapping[str, Any],
    bounds: tuple[float, float] | None = None,
    certified: bool = True,
) -> list[Row]:
    low, high = bounds or (None, None)
    return [
        Row(
            subject.step,
            "",
            "model",
            -1,
            entry.name,
            float(entry.function(**{name: observations[name] for name in entry.inputs})),
            low,
            high,
            certified,
            subject.name,
        )
        for entry in computable(frozenset(observations), "stability")
    ]
