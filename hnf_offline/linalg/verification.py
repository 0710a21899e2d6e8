"""Are products with derivatives what they claim to be?

Kernels of others differentiate once and say nothing the second time: products made by a second backward pass then
come out as zeros, silently.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hnf_offline.linalg.batched import unit
from hnf_offline.linalg.jacobian import LinearMap
from hnf_offline.linalg.second_derivative import SecondDerivative

#: Relative disagreement that rounding does not explain.
_TRANSPOSE, _DIFFERENCE = 1e-2, 0.5
#: Length of the step of differences, relative to the point's.
_STEP = 1e-3


def transpose_agrees(maps: LinearMap, like: Tensor, *, seed: int = 0) -> Tensor:
    """Hold a pair of products against each other: <u, J v> = <J' u, v> for random u and v.

    J' u is one backward pass, which any module has; J v is a second one. Both sides are sums with random signs, so
    they are compared in units of |J' u| |v| / sqrt(n), their typical size.

    Args:
        maps: the pair.
        like: gives shape [batch, n], dtype and device of v.
        seed: of u and v, drawn on the CPU.

    Returns:
        One answer an item, [batch]; True where a product is not finite, since nothing can be said there.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(shape: torch.Size) -> Tensor:
        return unit(torch.randn(shape, generator=generator, dtype=torch.float64)).to(like)

    right, left = drawn(like.shape), drawn(maps.value.flatten(1).shape)
    pulled = maps.apply_transposed(left)
    forward, backward = (left * maps.apply(right)).sum(dim=1), (pulled * right).sum(dim=1)
    scale = pulled.norm(dim=1) / like.shape[1] ** 0.5
    off: Tensor = (forward - backward).abs() > _TRANSPOSE * torch.maximum(backward.abs(), scale)
    return ~off


def second_derivative_agrees(function: Callable[[Tensor], Tensor], point: Tensor, *, seed: int = 0) -> Tensor:
    """Hold D2 <w, f> v against a central difference of the gradient of <w, f>, which needs one backward pass a side.

    Half of the difference may be missing before it counts: what is looked for are parts that vanish, and at kinks
    (ReLU) a difference is right to see more than the second derivative does.

    Args:
        function: a map of independent items, [batch, ...] -> [batch, ...].
        point: where, [batch, ...].
        seed: of v and w, drawn on the CPU.

    Returns:
        One answer an item, [batch]; True where something is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    derivative = SecondDerivative(function, point)
    flat = point.flatten(1)

    def drawn(size: int) -> Tensor:
        return unit(torch.randn(len(flat), size, generator=generator, dtype=torch.float64)).to(flat)

    right, left = drawn(derivative.inputs), drawn(derivative.outputs)
    step = _STEP * flat.norm(dim=1, keepdim=True)

    def gradient(at: Tensor) -> Tensor:
        inputs = at.reshape(point.shape).detach().requires_grad_()
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            outputs = function(inputs).flatten(1)
            if not outputs.requires_grad:
                return torch.zeros_like(at)
            (found,) = torch.autograd.grad((outputs * left).sum(), inputs, materialize_grads=True)
        return found.flatten(1)

    above, below = gradient(flat + step * right), gradient(flat - step * right)
    difference = (above - below) / (2 * step)
    noise = 10 * torch.finfo(flat.dtype).eps * above.norm(dim=1) / step[:, 0]
    product = derivative.form(left)(right)
    off: Tensor = (product - difference).norm(dim=1) > _DIFFERENCE * difference.norm(dim=1) + noise
    return ~off
