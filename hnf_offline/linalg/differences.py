"""Hessian-vector products as differences of gradients: no second derivatives, no graph that outlives a product.

H v = (g(theta + h v) - g(theta)) / h + O(h). It needs an ordinary gradient at the shifted point, so any attention
kernel will do, and the memory of one ordinary gradient (Dennis & Schnabel 1983, section 5.4; measured against exact
products in docs/curvature.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hnf_offline.linalg.hessian import Block, Part

#: The shift of a typical entry as a share of a typical parameter; float32 is best between 3e-4 and 1e-3.
RELATIVE_STEP = {torch.float32: 1e-3, torch.float64: 1e-6}


def step_length(directions: Sequence[Tensor], parameters: Sequence[Tensor], relative: float) -> Tensor:
    """Choose how far to shift along a unit vector.

    h = relative * rms(theta) * sqrt(k), where k = 1 / sum_i v_i^4 is the number of entries that v really lies on
    (its participation ratio). So an entry that v lies on moves by about `relative` of a typical parameter, whether
    v is spread over the layer or sits on one row of an embedding.

    Args:
        directions: the pieces of the unit vector v.
        parameters: what they shift, to take the size from.
        relative: share of a typical parameter.

    Returns:
        h, a scalar on the device of the vector.
    """
    fourth = torch.stack([piece.square().square().sum() for piece in directions]).sum()
    squares = torch.stack([parameter.square().sum() for parameter in parameters]).sum()
    size = (squares / sum(parameter.numel() for parameter in parameters)).sqrt()
    entries = fourth.clamp_min(torch.finfo(fourth.dtype).tiny).rsqrt()
    # Zeros (biases at the start) have no size of their own; this is that of common initial weights.
    return relative * size.clamp_min(0.03) * entries


def check_precision(dtype: torch.dtype) -> None:
    """Refuse precisions in which a difference of two gradients is noise.

    Raises:
        ValueError: for anything but float32 and float64, or where matrix products run in TF32.
    """
    if dtype not in RELATIVE_STEP:
        raise ValueError(f"differences of gradients need float32 or float64, not {dtype}")
    tf32 = torch.get_float32_matmul_precision() != "highest" or torch.backends.cudnn.allow_tf32
    if dtype == torch.float32 and torch.cuda.is_available() and tf32:
        raise ValueError("differences of gradients do not survive TF32: switch it off")


class GradientDifferences:
    """The Hessian of sum_i w_i loss_i in named parameters, by differences of whole gradients.

    Attributes:
        loss: the weighted loss, detached.
        gradients: the weighted gradient by parameter name, detached.
    """

    def __init__(
        self,
        losses: Sequence[Callable[[Mapping[str, Tensor]], Tensor]],
        weights: Sequence[float],
        parameters: Mapping[str, Tensor],
        *,
        relative_step: float | None = None,
        gradients: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Evaluate the losses and their gradients.

        Args:
            losses: one function a micro-batch; it is given replacements of parameters by name (of all or of some)
                and gives a scalar that depends on them.
            weights: weight of each micro-batch; they should sum to 1.
            parameters: float32 or float64.
            relative_step: see `step_length`; None for the best of the parameters' precision.
            gradients: the weighted gradient where it is known already.

        Raises:
            ValueError: if the precision does not allow differences.
        """
        self._losses = tuple(losses)
        self._weights = tuple(weights)
        self._parameters = {name: value.detach() for name, value in parameters.items()}
        first = next(iter(self._parameters.values()))
        check_precision(first.dtype)
        self._step = RELATIVE_STEP[first.dtype] if relative_step is None else relative_step
        if gradients is None:
            self.loss, found = self._differentiate(self._parameters)
            self.gradients = found
        else:
            self.loss, self.gradients = torch.full((), torch.nan), dict(gradients)

    def _differentiate(self, at: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        total = torch.zeros((), device=next(iter(at.values())).device)
        sums: dict[str, Tensor] = {}
        for function, weight in zip(self._losses, self._weights, strict=True):
            leaves = {name: value.detach().requires_grad_() for name, value in at.items()}
            loss = function(leaves)
            # Each is let go as it is added: a large model has no room for two of everything.
            gradients = list(torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True))[::-1]
            total = total + weight * loss.detach()
            for name in leaves:
                gradient = gradients.pop()
                sums[name] = sums[name].add_(gradient, alpha=weight) if name in sums else weight * gradient
        return total, sums

    def block(self, parts: Sequence[Part]) -> Block:
        """Give the diagonal block of some parts.

        Returns:
            A symmetric operator over the parts, in their order.
        """
        return Block(self, tuple(parts))

    def product(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Multiply the Hessian by a vector that is zero outside some parameters.

        Returns:
            The product restricted to the same parameters, by name.
        """
        pieces = list(vectors.values())
        length = torch.stack([piece.square().sum() for piece in pieces]).sum().sqrt()
        # A zero vector has a zero product; the division must not make it NaN.
        unit = {name: piece / length.clamp_min(1e-30) for name, piece in vectors.items()}
        step = step_length(list(unit.values()), [self._parameters[name] for name in unit], self._step)
        shifted = {name: unit.pop(name).mul_(step).add_(self._parameters[name]) for name in vectors}
        _, there = self._differentiate(shifted)
        del shifted
        return {name: there.pop(name).sub_(self.gradients[name]).mul_(length / step) for name in vectors}
