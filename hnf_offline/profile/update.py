"""The optimizer's next update in full, as torch's own optimizer would apply it to a replayed gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hnf_offline.run.optimizer import OptimizerState, ParameterState


def full_update(
    state: OptimizerState, gradients: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """Give u of the next step w -> w - u: moments with the new gradient in them, learning rate, weight decay.

    Gradient clipping is left out: the state does not say it. Where AMSGrad kept a running maximum, it stands for
    the second moment. Weight decay of an Adam whose file does not tell it from AdamW is taken as AdamW's.

    Args:
        state: the optimizer's state before the step.
        gradients: the gradient of the batch of that step, by parameter name.
        parameters: the weights, by parameter name.

    Returns:
        By parameter name, shaped as the gradients, 0 for parameters that the optimizer does not move; None where
        the optimizer is no Adam, AdamW or SGD, or lacks a rate or a moment.

    Source: Kingma & Ba 2015 (arXiv 1412.6980), Algorithm 1; Loshchilov & Hutter 2019 (arXiv 1711.05101); the
    documentation of torch.optim.SGD.
    """
    update: dict[str, Tensor] = {}
    for name, gradient in gradients.items():
        own = state.parameters.get(name)
        if own is None:
            update[name] = torch.zeros_like(gradient)
            continue
        weight = parameters[name].detach()
        if state.kind in {"adam", "adamw"}:
            moved = _adam(own, gradient, weight, coupled=state.kind == "adam" and own.decoupled is False)
        elif state.kind == "sgd":
            moved = _sgd(own, gradient, weight, saved=state.saved)
        else:
            moved = None
        if moved is None:
            return None
        update[name] = moved
    return update


def _adam(own: ParameterState, gradient: Tensor, weight: Tensor, *, coupled: bool) -> Tensor | None:
    rate, beta1, beta2 = own.learning_rate, own.beta1, own.beta2
    if rate is None or beta1 is None or beta2 is None or own.exp_avg is None or own.exp_avg_sq is None:
        return None
    if own.step is None:
        return None
    decay, step = own.weight_decay or 0.0, own.step + 1
    if coupled:
        gradient = gradient + decay * weight
    first = beta1 * own.exp_avg.to(gradient).reshape(gradient.shape) + (1 - beta1) * gradient
    second = beta2 * own.exp_avg_sq.to(gradient).reshape(gradient.shape) + (1 - beta2) * gradient.square()
    m_hat, v_hat = first / (1 - beta1**step), second / (1 - beta2**step)
    update = rate * m_hat / (v_hat.sqrt() + (own.eps or 0.0))
    return update if coupled else update + rate * decay * weight


def _sgd(own: ParameterState, gradient: Tensor, weight: Tensor, *, saved: bool) -> Tensor | None:
    if own.learning_rate is None:
        return None
    gradient = gradient + (own.weight_decay or 0.0) * weight
    momentum = own.momentum or 0.0
    if momentum == 0.0:
        return own.learning_rate * gradient
    if own.momentum_buffer is not None:
        buffer = own.momentum_buffer.to(gradient).reshape(gradient.shape)
        buffer = momentum * buffer + (1 - (own.dampening or 0.0)) * gradient
    elif saved:
        buffer = gradient  # torch's first step
    else:
        return None
    return own.learning_rate * (gradient + momentum * buffer if own.nesterov else buffer)
