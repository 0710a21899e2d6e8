"""HNF and Newton curvature, and the bound on compositions: closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from hnf_offline.linalg.curvature import composition_bound, hnf_curvature, newton_curvature
from hnf_offline.linalg.jacobian import token_jacobians
from hnf_offline.linalg.second_derivative import second_derivative_norm


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def test_kappa_is_how_fast_a_linear_prediction_fails() -> None:
    point = torch.tensor([[0.4, -1.0, 2.0, 0.3]], dtype=torch.float64)
    norm = nn.LayerNorm(4, eps=0.0, elementwise_affine=False)
    found = second_derivative_norm(norm, point, iterations=40, tolerance=1e-8)
    jacobian = token_jacobians(norm, point)[0]
    step = 1e-4
    rest = norm(point + step * found.direction) - norm(point) - step * (jacobian @ found.direction[0])
    assert float(rest.norm()) / step**2 == pytest.approx(float(hnf_curvature(found.value)[0]), rel=1e-3)


@pytest.mark.parametrize("width", [4, 16])
def test_newton_curvature_of_layer_norm_does_not_depend_on_its_scale(width: int) -> None:
    """kappa = 1 / (sqrt(3n) sigma^2) and ||J+|| = sigma: 1 / sqrt(3n), whatever sigma."""
    points = torch.randn(3, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points = points * torch.tensor([[0.1], [1.0], [10.0]])
    norm = nn.LayerNorm(width, eps=0.0, elementwise_affine=False)
    found = second_derivative_norm(norm, points, iterations=40, tolerance=1e-8)
    singular_values = torch.linalg.svdvals(token_jacobians(norm, points))
    newton = newton_curvature(found.value, singular_values, 2)
    assert torch.allclose(newton, torch.full_like(newton, 1 / math.sqrt(3 * width)), rtol=1e-6)
    # Without deflation there is nothing to read.
    assert (newton_curvature(found.value, singular_values, 0) > 1e10).all()


def test_newton_curvature_has_units_of_one_over_output() -> None:
    """x^2 at x: kappa 1, derivative 2x, so 1 / (4 x^2); in other units of the output c it is 1/c of that."""
    assert float(newton_curvature(number(2.0), number(6.0)[None], 0)) == pytest.approx(1 / 36)
    assert float(newton_curvature(number(20.0), number(60.0)[None], 0)) == pytest.approx(1 / 360)


def test_the_composition_bound_is_reached_by_aligned_squares() -> None:
    """g(y) = y^2, f(x) = x^2 at x = 1: kappa of x^4 is 6 = 1 * 2^2 + 2 * 1."""
    one, two = number(1.0), number(2.0)
    assert float(composition_bound(one, two, one, two)) == 6.0
    found = second_derivative_norm(lambda x: x**4, torch.ones(1, 1, dtype=torch.float64))
    assert float(hnf_curvature(found.value)[0]) == pytest.approx(6.0)


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_no_composition_of_closed_forms_breaks_the_bound(scale: float) -> None:
    """softmax after LayerNorm: the left side is a lower bound, the right uses true suprema."""
    width = 12
    points = torch.randn(30, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sigma = points.std(dim=1, correction=0)
    norm = nn.LayerNorm(width, eps=0.0, elementwise_affine=False)
    found = second_derivative_norm(lambda x: (scale * norm(x)).softmax(dim=-1), points, iterations=30)
    bound = composition_bound(
        number(math.sqrt(2 / 27) / 2),
        number(0.5),
        scale / (math.sqrt(3 * width) * sigma.square()),
        scale / sigma,
    )
    ratio = hnf_curvature(found.value) / bound
    assert (ratio <= 1 + 1e-9).all()
    assert float(ratio.max()) > 0.05
