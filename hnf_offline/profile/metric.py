"""From saved optimizer state to the step metric and the next update, parameter by parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from hnf_offline.quantities.optimizer import adam_step_metric, sgd_step_size
from hnf_offline.run.model.placing import placed
from hnf_offline.run.optimizer import OptimizerState, ParameterState


def step_metric(state: OptimizerState, parameters: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Give the diagonal A for which S = lambda_max(A^1/2 H A^1/2).

    A parameter that the optimizer does not update has A = 0: it takes no part in the instability.

    Returns:
        By parameter name, shaped as the parameters; None where the stability limit of the optimizer is not known.
    """
    metric: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        own = state.parameters.get(name)
        if own is None:
            metric[name] = torch.zeros_like(parameter)
        elif own.learning_rate is None:
            return None
        elif state.kind in {"adam", "adamw"}:
            second = _second_moment(own, parameter)
            if second is None or own.beta1 is None:
                return None
            metric[name] = adam_step_metric(own.learning_rate, own.beta1, second, own.eps or 0.0)
        elif state.kind == "sgd":
            size = sgd_step_size(own.learning_rate, own.momentum or 0.0, own.dampening or 0.0, own.nesterov)
            metric[name] = torch.full_like(parameter, size)
        else:
            return None
    return {name: tensor.detach() for name, tensor in metric.items()}


def adam_tensors(state: OptimizerState, like: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]] | None:
    """Give Adam's bias-corrected second moment and its epsilon for every parameter.

    Returns:
        {"second_moment": by name, "epsilon": by name}, None where the optimizer is no Adam or lacks a moment.
    """
    if state.kind not in {"adam", "adamw"}:
        return None
    second: dict[str, Tensor] = {}
    epsilon: dict[str, Tensor] = {}
    for name, tensor in like.items():
        own = state.parameters.get(name)
        moment = None if own is None else _second_moment(own, tensor)
        if own is None or moment is None:
            return None
        second[name] = moment
        epsilon[name] = torch.full_like(tensor, own.eps or 0.0)
    return {"second_moment": second, "epsilon": epsilon}


def next_update(state: OptimizerState, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the direction of the optimizer's next update as its state has it, learning rate included.

    Adam: eta m / (sqrt(v_hat) + eps); SGD with momentum: eta times the momentum buffer; plain SGD: eta times
    the replayed gradient. Weight decay is left out.

    Returns:
        By parameter name, shaped as the gradients.
    """
    update: dict[str, Tensor] = {}
    for name, gradient in gradients.items():
        own = state.parameters.get(name)
        if own is None or own.learning_rate is None:
            update[name] = torch.zeros_like(gradient)
            continue
        second = _second_moment(own, gradient)
        if own.exp_avg is not None and second is not None:
            direction = placed(own.exp_avg, gradient.device).to(gradient).reshape(gradient.shape) / (
                second.sqrt() + (own.eps or 0.0)
            )
        elif own.momentum_buffer is not None:
            direction = placed(own.momentum_buffer, gradient.device).to(gradient).reshape(gradient.shape)
        else:
            direction = gradient
        update[name] = own.learning_rate * direction
    return update


def largest_learning_rate(state: OptimizerState) -> float | None:
    """Give the largest learning rate over the parameters.

    Returns:
        The rate, None where none is known.
    """
    rates = [own.learning_rate for own in state.parameters.values() if own.learning_rate is not None]
    return max(rates, default=None)


def _second_moment(own: ParameterState, like: Tensor) -> Tensor | None:
    if own.exp_avg_sq is None or own.beta2 is None or not own.step:
        return None
    on_device = replace(own, exp_avg_sq=placed(own.exp_avg_sq, like.device))  # divided there, not here
    return on_device.second_moment().to(like).reshape(like.shape)
