"""Entries whose gradient was never more than rounding: they have no curvature, and Adam's step metric there is noise.

A key bias adds one number to all scores of a query; softmax does not see it, so its gradient is zero but for rounding,
and has been so through all of training. Adam's second moment is the square of that rounding, the metric
A = 1 / (sqrt(v_hat) + eps) a million times that of other entries, and A^1/2 H A^1/2 there what rounding makes of it:
differences of gradients turned it into values of S some ten to a hundred times those of the layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hnf_offline.profile.metric import adam_tensors, step_metric
from hnf_offline.run.optimizer import OptimizerState

#: Rounding, as a share of the typical gradient of the same module. Key biases of seven models of tests/profile have at
#: most 3e-7 of it in float32, other entries at least 1e-4; and curvature goes with the square of the gradient.
ROUNDING = 1e-5


def step_metric_of(
    optimizer: OptimizerState | None, gradients: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """Give the step metric A that curvature is looked at in, without entries that are only rounding.

    Args:
        optimizer: the saved state, None where there is none.
        gradients: of the replayed rows, by parameter name.

    Returns:
        The diagonal by parameter name; None where it is not known.
    """
    if optimizer is None:
        return None
    metric, state = step_metric(optimizer, gradients), adam_tensors(optimizer, gradients)
    if metric is None or state is None:
        return metric
    return without_rounding(metric, state["second_moment"], gradients)


def without_rounding(
    metric: Mapping[str, Tensor], second_moment: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Take entries out of a step metric (A = 0) whose gradient is rounding both in the second moment and now.

    An entry that the optimizer has not felt but that the replayed rows move (a token not seen before) stays in.

    Args:
        metric: the diagonal of A by parameter name, shaped as the parameters.
        second_moment: Adam's v_hat by parameter name.
        gradients: of the replayed rows, by parameter name.

    Returns:
        The metric; nothing waits for the device.
    """
    felt = _typical({name: moment.sqrt() for name, moment in second_moment.items()})
    moved = _typical(gradients)
    kept: dict[str, Tensor] = {}
    for name, diagonal in metric.items():
        owner = name.rpartition(".")[0]
        unfelt = second_moment[name].sqrt() <= ROUNDING * felt[owner]
        unmoved = gradients[name].abs() <= ROUNDING * moved[owner]
        kept[name] = torch.where(unfelt & unmoved, 0.0, diagonal)
    return kept


def _typical(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the largest root mean square over the parameters of each module, by the module's path."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        owner, size = name.rpartition(".")[0], tensor.square().mean().sqrt()
        found[owner] = torch.maximum(found[owner], size) if owner in found else size
    return found
