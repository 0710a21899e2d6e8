"""The whole model's Hessian on some micro-batches: by differences of gradients, or exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from hnf_offline.linalg.differences import RELATIVE_STEP, GradientDifferences
from hnf_offline.linalg.hessian import Block, HessianGraph
from hnf_offline.profile.batch import MicroBatch
from hnf_offline.profile.counted import CountedDifferences
from hnf_offline.profile.layer_curvature import exact_graph
from hnf_offline.profile.suffix.blocks import unfused
from hnf_offline.profile.suffix.restart import evaluate_with
from hnf_offline.run.model.layers import Layer

#: A Hessian with the loss and the gradient it belongs to.
Hessian = HessianGraph | GradientDifferences


def losses_of(
    module: nn.Module, batches: Sequence[MicroBatch]
) -> list[Callable[[Mapping[str, Tensor]], Tensor]]:
    """Give one loss function a micro-batch, each of replacements of parameters.

    Returns:
        Functions of tensors by parameter name.
    """

    def loss(batch: MicroBatch, parameters: Mapping[str, Tensor]) -> Tensor:
        with unfused():
            return evaluate_with(module, parameters, batch)

    return [partial(loss, batch) for batch in batches]


def whole_hessian(
    module: nn.Module, batches: Sequence[MicroBatch], *, exact: bool, keep_graphs: bool
) -> Hessian:
    """Evaluate loss and gradient, ready for products with the Hessian.

    Args:
        module: in eval mode.
        batches: micro-batches whose weights sum to 1.
        exact: multiply exactly, at the cost of a graph of second derivatives.
        keep_graphs: whether such graphs of all micro-batches fit into memory together.

    Returns:
        The Hessian.
    """
    if exact:
        return exact_graph(module, batches, keep=keep_graphs)
    parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
    weights = [batch.weight for batch in batches]
    return CountedDifferences(batches, losses_of(module, batches), weights, parameters)


def block_of_all(hessian: Hessian, layers: Sequence[Layer]) -> Block:
    """Give the Hessian of all layers in one flat vector.

    Returns:
        A symmetric operator, the layers one after another.
    """
    return hessian.block([part for layer in layers for part in layer.parts])


def allows_differences(module: nn.Module) -> bool:
    """Say whether differences of gradients are worth their saving: in float32, where nobody asked for more digits.

    Returns:
        False for float64, whose user wants all digits, and for coarser precisions, where differences are noise.
    """
    dtypes = {parameter.dtype for parameter in module.parameters()}
    return dtypes <= {torch.float32} and torch.float32 in RELATIVE_STEP
