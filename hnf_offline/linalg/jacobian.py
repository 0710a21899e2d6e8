"""Jacobians of a layer's map from input to output: exact token by token, or as a pair of products.

`token_jacobians` forms the matrix of a map that treats every token alone (a norm, an MLP), one forward-mode
product a column. `linear_maps` multiplies by the Jacobian of a map of whole sequences (attention, a block)
without forming it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

#: A column made together with others costs at most this many copies of the wider of input and output. Measured on the
#: CPU, width 512: 16 for an MLP with GELU, 22 gated (the hidden layer is 4 wide, with value and tangent of a few
#: intermediates), 14 for LayerNorm.
_COPIES = 24


@dataclass(frozen=True, slots=True)
class LinearMap:
    """The Jacobian of a map of independent items at a point, as products.

    Attributes:
        value: the map's output at the point, detached, shaped as the map gives it.
        apply: J v, [batch, n] -> [batch, m].
        apply_transposed: J' u, [batch, m] -> [batch, n].
    """

    value: Tensor
    apply: Callable[[Tensor], Tensor]
    apply_transposed: Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class FrobeniusEstimate:
    """Frobenius norms from random products.

    Attributes:
        values: square root of the mean squared length, [batch].
        errors: standard error (of the square root, to first order), [batch].
    """

    values: Tensor
    errors: Tensor


def token_jacobians(
    function: Callable[[Tensor], Tensor], tokens: Tensor, *, memory: int = 256 * 2**20
) -> Tensor:
    """Form the Jacobian of a per-token map at every token.

    Column j of all tokens is one forward-mode product along e_j; as many columns go together as fit the budget.

    Args:
        function: [tokens, n] -> [tokens, m], row by row.
        tokens: the points, [tokens, n].
        memory: budget in bytes for the columns made together, beside the result.

    Returns:
        [tokens, m, n].

    Raises:
        ValueError: if an output row depends on another token's input.
    """
    count, size = tokens.shape
    tokens = tokens.detach()

    def along(direction: Tensor) -> tuple[Tensor, Tensor]:
        result = torch.func.jvp(function, (tokens,), (direction.expand_as(tokens),))
        return result[0], result[1]

    # Forward mode is not switched off by no_grad; backward graphs of the parameters are.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        first = torch.zeros_like(tokens)
        first[::2] = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(tokens)
        value, product = along(first)
        # Without coupling these products are sums of zeros; a NaN beside them couples nothing.
        if bool((product[1::2].abs() > 0).any()):
            raise ValueError("the map is not per token: an output row depends on another token's input")
        height = value[0].numel()
        together = max(1, memory // (_COPIES * count * max(size, height) * tokens.element_size()))
        identity = torch.eye(size, dtype=tokens.dtype, device=tokens.device)
        jacobians = value.new_empty(count, height, size)
        # Written in place: small results kept alive between large temporaries fragment the heap.
        for begin in range(0, size, together):
            some = identity[begin : begin + together]
            columns = torch.func.vmap(lambda column: along(column)[1])(some)
            jacobians[:, :, begin : begin + together] = columns.reshape(len(some), count, height).permute(
                1, 2, 0
            )
    return jacobians


def linear_maps(function: Callable[[Tensor], Tensor], point: Tensor) -> LinearMap:
    """Give the products with a map's Jacobian and with its transpose, from one graph built once.

    J' u is a backward pass. J v is the derivative of J' u, which is linear in u, along u (Townsend 2017, A new trick
    for calculating Jacobian vector products): a backward pass of the backward pass, so no forward-mode rule is
    needed. The map is evaluated under the math attention kernel, since fused kernels have no second derivative.

    Args:
        function: a differentiable map of independent items, [batch, ...] -> [batch, ...].
        point: where, [batch, ...].

    Returns:
        Products over flattened items.
    """
    inputs = point.detach().clone().requires_grad_()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        outputs = function(inputs)
        count, rows = outputs.shape[0], outputs[0].numel()
        if not outputs.requires_grad:
            columns = point[0].numel()
            return LinearMap(
                outputs.detach(),
                lambda vector: vector.new_zeros(count, rows),
                lambda vector: vector.new_zeros(count, columns),
            )
        dual = torch.zeros_like(outputs, requires_grad=True)
        (pulled,) = torch.autograd.grad(outputs, inputs, dual, create_graph=True, materialize_grads=True)

    def apply(vector: Tensor) -> Tensor:
        if not pulled.requires_grad:
            return vector.new_zeros(count, rows)
        (product,) = torch.autograd.grad(
            pulled, dual, vector.reshape(inputs.shape), retain_graph=True, materialize_grads=True
        )
        return product.reshape(count, -1)

    def apply_transposed(vector: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(
            outputs, inputs, vector.reshape(outputs.shape), retain_graph=True, materialize_grads=True
        )
        return product.reshape(count, -1)

    return LinearMap(outputs.detach(), apply, apply_transposed)


def frobenius_norms(
    apply: Callable[[Tensor], Tensor], like: Tensor, *, probes: int = 4, seed: int = 0
) -> FrobeniusEstimate:
    """Estimate ||A||_F of every map of a batch: ||A||_F^2 = E ||A z||^2 over Gaussian z (Hutchinson).

    Args:
        apply: A, [batch, n] -> [batch, m], every row by its own map.
        like: gives shape [batch, n], dtype and device.
        probes: products; at least 2, for the standard error.
        seed: of the probes, drawn on the CPU.

    Returns:
        Norms with standard errors.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(probes, *like.shape, generator=generator, dtype=torch.float64).to(like)
    return root_mean_square([apply(probe).square().sum(dim=1) for probe in drawn])


def root_mean_square(squares: list[Tensor]) -> FrobeniusEstimate:
    """Turn independent unbiased estimates of a square into one of its root.

    Args:
        squares: two or more, each [batch].

    Returns:
        Roots of the means, with first-order standard errors.
    """
    stacked = torch.stack(squares)
    root = stacked.mean(dim=0).sqrt()
    error = stacked.std(dim=0) / len(squares) ** 0.5
    return FrobeniusEstimate(root, torch.where(root > 0, error / (2 * root), error))
