"""Products that are missing a part are noticed; right ones are not accused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hnf_offline.linalg.jacobian import linear_maps
from hnf_offline.linalg.verification import second_derivative_agrees, transpose_agrees


class SquareOnce(torch.autograd.Function):
    """x^2 by a kernel with a first derivative and no other."""

    @staticmethod
    def forward(context: Any, state: Tensor) -> Tensor:
        context.save_for_backward(state)
        return state.square()

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient * context.saved_tensors[0]


def point(dtype: torch.dtype, items: int = 5, size: int = 24) -> Tensor:
    return torch.randn(items, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


RIGHT: dict[str, Callable[[Tensor], Tensor]] = {
    "square": torch.square,
    "softmax": lambda x: x.softmax(dim=-1),
    "norm": lambda x: nn.functional.layer_norm(x, x.shape[-1:]),
    "gelu": nn.functional.gelu,
    "linear": lambda x: 3 * x,
    "constant": torch.ones_like,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(RIGHT))
def test_right_products_pass(name: str, dtype: torch.dtype) -> None:
    x = point(dtype)
    for seed in range(20):
        assert bool(transpose_agrees(linear_maps(RIGHT[name], x), x, seed=seed).all())
        assert bool(second_derivative_agrees(RIGHT[name], x, seed=seed).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_kernel_that_differentiates_once_is_found_alone_and_inside_a_larger_map(dtype: torch.dtype) -> None:
    x = point(dtype)
    mixing = torch.randn(24, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    for function in (SquareOnce.apply, lambda state: state + SquareOnce.apply(state @ mixing)):
        maps = linear_maps(function, x)
        accused = [transpose_agrees(maps, x, seed=seed).logical_not() for seed in range(20)]
        assert torch.stack(accused).double().mean() > 0.9
        missing = [second_derivative_agrees(function, x, seed=seed).logical_not() for seed in range(20)]
        assert torch.stack(missing).all()


def test_what_is_not_finite_accuses_nobody() -> None:
    x = point(torch.float64)
    x[1, 0] = torch.nan
    assert bool(transpose_agrees(linear_maps(torch.square, x), x).all())
    assert bool(second_derivative_agrees(torch.square, x).all())
