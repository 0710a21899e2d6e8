"""Products of every layer's diagonal block by suffix replay: many layers, many vectors, one backward pass.

For a unit vector v of layer l, H_ll v = (g_l(theta_l + h v) - g_l(theta_l)) / h. The forward pass starts again at the
layer's block, the backward pass ends at the layer, and the changed copies of one block's layers share both on the
batch axis behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hnf_offline.linalg.differences import RELATIVE_STEP, check_precision, step_length
from hnf_offline.linalg.hessian import Part
from hnf_offline.profile.batch import MicroBatch
from hnf_offline.profile.suffix.blocks import CallOrder
from hnf_offline.profile.suffix.restart import Restart
from hnf_offline.run.model.layers import Layer


@dataclass(frozen=True, slots=True)
class Request:
    """One product that is wanted.

    Attributes:
        layer: the layer l.
        vector: [size of the layer]; of any length, zero included.
        relative_step: see `linalg.differences.step_length`; None for the precision's usual one.
    """

    layer: Layer
    vector: Tensor
    relative_step: float | None = None


class SuffixProducts:
    """Hessian products of single layers on some micro-batches.

    Attributes:
        order: the blocks of the module.
    """

    def __init__(
        self,
        module: nn.Module,
        order: CallOrder,
        batches: Sequence[MicroBatch],
        gradients: Mapping[str, Tensor],
        *,
        copies: int,
    ) -> None:
        """Remember the unchanged forward pass of every micro-batch.

        Args:
            module: in eval mode, float32 or float64.
            order: see `call_order`.
            batches: micro-batches whose weights sum to 1.
            gradients: the gradient of their weighted loss, by parameter name.
            copies: changed copies of a micro-batch that may go through the model together.

        Raises:
            ValueError: if the precision does not allow differences.
        """
        self.order = order
        self._module = module
        self._parameters = {name: value.detach() for name, value in module.named_parameters()}
        self._usual = RELATIVE_STEP.get(next(iter(self._parameters.values())).dtype, 0.0)
        check_precision(next(iter(self._parameters.values())).dtype)
        self._gradients = gradients
        self._copies = 1 if order.couples_rows else max(1, copies)
        self._restarts = [Restart(module, order, batch) for batch in batches]
        self._weights = [batch.weight for batch in batches]

    def __call__(self, requests: Sequence[Request]) -> list[Tensor]:
        """Multiply.

        Args:
            requests: products of layers that lie in one block, or all outside of blocks.

        Returns:
            One [size of its layer] product a request.
        """
        results: list[Tensor] = []
        for start in range(0, len(requests), self._copies):
            results += self._together(requests[start : start + self._copies])
        return results

    def _together(self, requests: Sequence[Request]) -> list[Tensor]:
        lengths, steps, shifted = [], [], []
        for request in requests:
            length = request.vector.norm()
            unit = request.vector / length.clamp_min(1e-30)
            direction = _by_parameter(request.layer.parts, unit)
            own = [self._parameters[name] for name in direction]
            step = step_length([unit], own, request.relative_step or self._usual)
            lengths.append(length)
            steps.append(step)
            shifted.append({name: self._parameters[name] + step * piece for name, piece in direction.items()})
        sums = [{name: torch.zeros_like(value) for name, value in one.items()} for one in shifted]
        block = self.order.block_of(requests[0].layer)
        for restart, weight in zip(self._restarts, self._weights, strict=True):
            found = (
                self._one_by_one(restart, requests, shifted)
                if block is None
                else self._side_by_side(restart, block, shifted)
            )
            for total, gradients in zip(sums, found, strict=True):
                for name, gradient in gradients.items():
                    total[name].add_(gradient, alpha=weight)
        return [
            torch.cat([
                part.gather(total[part.parameter] - self._gradients[part.parameter])
                for part in request.layer.parts
            ])
            * (length / step)
            for request, total, length, step in zip(requests, sums, lengths, steps, strict=True)
        ]

    def _side_by_side(
        self, restart: Restart, block: int, shifted: Sequence[Mapping[str, Tensor]]
    ) -> list[dict[str, Tensor]]:
        prefix = len(self.order.blocks[block]) + 1
        leaves = [{name: value.detach().requires_grad_() for name, value in one.items()} for one in shifted]
        with _frozen(self._module):
            outputs = [
                restart.block_output(block, {name[prefix:]: value for name, value in one.items()})
                for one in leaves
            ]
            loss = restart.loss_behind(block, outputs)
        return _gradients(loss, leaves)

    def _one_by_one(
        self, restart: Restart, requests: Sequence[Request], shifted: Sequence[Mapping[str, Tensor]]
    ) -> list[dict[str, Tensor]]:
        found: list[dict[str, Tensor]] = []
        for request, one in zip(requests, shifted, strict=True):
            skip = self.order.stage(request.layer)
            leaves = {name: value.detach().requires_grad_() for name, value in one.items()}
            with _frozen(self._module):
                loss = restart.loss_with(skip, leaves)
                found += _gradients(loss, [leaves])
        return found


def _gradients(loss: Tensor, leaves: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    flat = [value for one in leaves for value in one.values()]
    if not loss.requires_grad:
        # A layer that does not reach the loss.
        return [{name: torch.zeros_like(value) for name, value in one.items()} for one in leaves]
    gradients = iter(torch.autograd.grad(loss, flat, materialize_grads=True))
    return [{name: next(gradients) for name in one} for one in leaves]


def _by_parameter(parts: Sequence[Part], vector: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for part, piece in zip(parts, torch.split(vector, [part.size for part in parts]), strict=True):
        placed = part.scatter(piece)
        found[part.parameter] = found[part.parameter] + placed if part.parameter in found else placed
    return found


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    # The module's own parameters need no gradients for a while: only the changed copies do.
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
