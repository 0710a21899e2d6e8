"""||D2 f||: closed forms of softmax, the norms and activations, invariances, and claims that are false."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from hnf_offline.linalg.second_derivative import (
    SecondDerivative,
    second_derivative_frobenius,
    second_derivative_norm,
)

#: sup ||D2 softmax||, at p = (.7887, .2113).
SOFTMAX = math.sqrt(2 / 27)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def norm_of(function: Callable[[Tensor], Tensor], point: Tensor, **options: object) -> Tensor:
    """The supremum as well as a patient climb finds it."""
    found = second_derivative_norm(
        function, point, iterations=40, tolerance=1e-8, products=10, together=True, **options
    )
    assert found.settled.all()
    return found.value


def softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=-1)


def softmax_second_derivative(logits: Tensor, direction: Tensor) -> Tensor:
    """D2 p_i[v, v] = p_i ((v_i - <p, v>)^2 - Var_p v)."""
    probabilities = logits.softmax(dim=-1)
    centred = direction - (probabilities * direction).sum(dim=-1, keepdim=True)
    variance = (probabilities * centred.square()).sum(dim=-1, keepdim=True)
    return probabilities * (centred.square() - variance)


def dense(function: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """[m, n, n] by torch's own Hessians, one output at a time."""
    rows = function(point[None])[0].numel()
    with sdpa_kernel(SDPBackend.MATH):
        return torch.stack([
            torch.autograd.functional.hessian(lambda x, k=k: function(x[None]).reshape(-1)[k], point)
            for k in range(rows)
        ])


# --- products


def test_the_second_derivative_of_softmax_is_its_formula() -> None:
    logits, directions = 2 * normal(5, 9), normal(5, 9, seed=1)
    found = SecondDerivative(softmax, logits).bilinear(directions, directions)
    assert torch.allclose(found, softmax_second_derivative(logits, directions), atol=1e-12)


class Attention(nn.Module):
    """Causal attention with two heads, by the fused call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.project = nn.Linear(4, 12)

    def forward(self, inputs: Tensor) -> Tensor:
        batch, length, width = inputs.shape
        query, key, value = (
            part.view(batch, length, 2, 2).transpose(1, 2)
            for part in self.project(inputs).split(width, dim=2)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return mixed.transpose(1, 2).reshape(inputs.shape)


def gated() -> Callable[[Tensor], Tensor]:
    torch.manual_seed(3)
    up, gate, down = (layer.double() for layer in (nn.Linear(5, 9), nn.Linear(5, 9), nn.Linear(9, 4)))
    return lambda x: down(functional.silu(gate(x)) * up(x))


MAPS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "gated mlp": (gated(), (5,)),
    "layer norm": (nn.LayerNorm(6).double(), (6,)),
    "rms norm": (nn.RMSNorm(6).double(), (6,)),
    "attention": (Attention().double(), (3, 4)),
    "block": (lambda x: x + torch.tanh(x @ normal(4, 4, seed=9)).cumsum(dim=1), (3, 4)),
}


@pytest.mark.parametrize("name", MAPS)
def test_products_are_those_of_dense_hessians_and_symmetric(name: str) -> None:
    function, shape = MAPS[name]
    point = normal(2, *shape)
    derivative = SecondDerivative(function, point)
    first, second = normal(2, point[0].numel(), seed=1), normal(2, point[0].numel(), seed=2)
    output = normal(2, derivative.outputs, seed=3)
    image, mirrored = derivative.bilinear(first, second), derivative.bilinear(second, first)
    assert torch.allclose(image, mirrored, atol=1e-12)
    form = derivative.form(output)
    left, right = (form(first) * second).sum(dim=1), (form(second) * first).sum(dim=1)
    assert torch.allclose(left, right, atol=1e-12)
    assert torch.allclose(left, (output * image).sum(dim=1), atol=1e-12)
    for item in range(2):
        tensor = dense(function, point[item]).reshape(derivative.outputs, *[derivative.inputs] * 2)
        exact = torch.einsum("mij,i,j->m", tensor, first[item], second[item])
        assert torch.allclose(image[item], exact, atol=1e-12)


# --- closed forms


@pytest.mark.parametrize("width", [2, 3, 8, 32])
def test_softmax_reaches_its_supremum_at_two_probabilities_and_never_exceeds_it(width: int) -> None:
    probability = 0.5 + 0.5 / math.sqrt(3)
    assert probability == pytest.approx(0.7887, abs=1e-4)
    logits = torch.full((1, width), -60.0, dtype=torch.float64)
    logits[0, :2] = torch.tensor([probability, 1 - probability]).log()
    found = second_derivative_norm(softmax, logits, iterations=40, tolerance=1e-10)
    assert float(found.value[0]) == pytest.approx(SOFTMAX, abs=1e-6)
    assert found.direction[0, :2].abs().tolist() == pytest.approx([0.5**0.5, 0.5**0.5], abs=1e-4)
    everywhere = norm_of(softmax, 3 * normal(200, width), restarts=2)
    assert float(everywhere.max()) <= SOFTMAX + 1e-9


def test_the_claim_that_softmax_is_tight_at_one_half_is_false() -> None:
    """Published: kappa <= 1/2, tight at n = 2, p = 1/2. There the second derivative vanishes."""
    equal = torch.zeros(1, 2, dtype=torch.float64)
    assert float(norm_of(softmax, equal)[0]) < 1e-12
    # The largest kappa of all is .13608, and is not at p = 1/2.
    probabilities = torch.linspace(0.01, 0.99, 197, dtype=torch.float64)
    logits = torch.stack([probabilities.logit(), torch.zeros_like(probabilities)], dim=1)
    kappa = norm_of(softmax, logits) / 2
    # For two logits D2 p[v, v] = p (1 - p) (1 - 2p) (v_1 - v_2)^2 (1, -1).
    exact = 2**0.5 * (probabilities * (1 - probabilities) * (1 - 2 * probabilities)).abs()
    assert torch.allclose(kappa, exact, atol=1e-9)
    assert float(kappa.max()) == pytest.approx(SOFTMAX / 2, abs=1e-4)


@pytest.mark.parametrize("width", [3, 8, 64])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms_have_two_over_root_three_n_sigma_squared(kind: str, width: int) -> None:
    points = normal(4, width) * torch.tensor([0.1, 1.0, 3.0, 10.0], dtype=torch.float64)[:, None]
    if kind == "layer":
        function: nn.Module = nn.LayerNorm(width, eps=0.0, elementwise_affine=False)
        square = points.var(dim=1, correction=0)
    else:
        function = nn.RMSNorm(width, eps=0.0, elementwise_affine=False)
        square = points.square().mean(dim=1)
    exact = 2 / (math.sqrt(3 * width) * square)
    assert torch.allclose(norm_of(function, points), exact, rtol=1e-6)
    # Times the gain, for an equal one; the largest gain bounds an unequal one.
    assert torch.allclose(norm_of(lambda x: -2.5 * function(x), points), 2.5 * exact, rtol=1e-6)
    gains = torch.linspace(0.2, 2.5, width, dtype=torch.float64)
    below = second_derivative_norm(lambda x: gains * function(x), points, restarts=2)
    assert (below.value <= 2.5 * exact * (1 + 1e-9)).all()


@pytest.mark.parametrize(
    ("function", "where", "exact"),
    [
        (functional.gelu, 0.0, 0.79788456),
        (functional.silu, 0.0, 0.5),
        (torch.tanh, math.atanh(3**-0.5), 4 / 3**1.5),
    ],
)
def test_largest_second_derivatives_of_activations(
    function: Callable[[Tensor], Tensor], where: float, exact: float
) -> None:
    grid = torch.linspace(-6, 6, 2401, dtype=torch.float64)[:, None]
    everywhere = norm_of(function, grid, restarts=1)
    assert float(everywhere.max()) <= exact + 1e-7
    assert abs(float(grid[everywhere.argmax(), 0])) == pytest.approx(where, abs=0.006)
    there = torch.full((1, 1), where, dtype=torch.float64)
    assert float(norm_of(function, there)[0]) == pytest.approx(exact, abs=1e-6)


def test_an_elementwise_map_has_the_largest_of_its_entries_and_many_local_maxima() -> None:
    points = 2 * normal(4, 16)
    entries = norm_of(torch.tanh, points.reshape(-1, 1), restarts=1).reshape(4, 16)
    # Every coordinate axis is a fixed point of the climb, so the axis has to be given or met by chance.
    axes = torch.eye(16, dtype=torch.float64)[:, None].expand(-1, 4, -1)
    found = second_derivative_norm(torch.tanh, points, restarts=0, starts=axes, tolerance=1e-12)
    assert torch.allclose(found.value, entries.amax(dim=1), rtol=1e-9)
    assert (found.restarts_agreeing < found.restarts).all()
    single = second_derivative_norm(torch.tanh, points, restarts=1)
    assert (single.value <= found.value * (1 + 1e-9)).all()


POSITIVE = torch.tensor([[0.3], [1.0], [2.5]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("function", "kappa"),
    [
        (torch.square, torch.ones_like),
        (torch.exp, lambda x: x.exp() / 2),
        (torch.log, lambda x: 1 / (2 * x.square())),
        (torch.sqrt, lambda x: 1 / (8 * x**1.5)),
        (lambda x: 3 * x + 1, torch.zeros_like),
    ],
)
def test_kappa_of_functions_of_one_number(
    function: Callable[[Tensor], Tensor], kappa: Callable[[Tensor], Tensor]
) -> None:
    assert torch.allclose(norm_of(function, POSITIVE)[:, None] / 2, kappa(POSITIVE), rtol=1e-9)


def test_the_published_root_with_one_quarter_is_false() -> None:
    kappa = norm_of(torch.sqrt, POSITIVE)[:, None] / 2
    assert torch.allclose(2 * kappa, 1 / (4 * POSITIVE**1.5), rtol=1e-9)


def test_a_product_has_kappa_one_half_and_is_not_flat() -> None:
    """The claim that bilinear maps have no curvature is false: x y has kappa 1/2 everywhere."""
    points = normal(5, 2)
    found = second_derivative_norm(lambda x: x[:, :1] * x[:, 1:], points)
    assert torch.allclose(found.value / 2, torch.full((5,), 0.5, dtype=torch.float64), rtol=1e-6)
    assert (found.restarts_agreeing == found.restarts).all()


def test_a_quotient_has_its_published_kappa() -> None:
    points = normal(6, 2) + torch.tensor([0.0, 4.0], dtype=torch.float64)
    x, y = points.T
    exact = (x.abs() / y.abs() ** 3 + (x.square() / y**6 + y**-4).sqrt()) / 2
    assert torch.allclose(norm_of(lambda x: x[:, :1] / x[:, 1:], points) / 2, exact, rtol=1e-6)


# --- bounds, restarts, invariances


@pytest.mark.parametrize("name", MAPS)
def test_no_random_direction_beats_the_climb_and_more_iterations_never_lower_it(name: str) -> None:
    function, shape = MAPS[name]
    point = normal(2, *shape)
    derivative = SecondDerivative(function, point)
    values = [
        second_derivative_norm(function, point, iterations=k, tolerance=0.0).value for k in (1, 2, 4, 8)
    ]
    for before, after in pairwise(values):
        assert (after >= before * (1 - 1e-12)).all()
    for seed in range(50):
        direction = functional.normalize(normal(2, derivative.inputs, seed=seed), dim=1)
        assert (derivative.bilinear(direction, direction).norm(dim=1) <= values[-1]).all()


def test_what_is_returned_attains_the_value() -> None:
    function, shape = MAPS["gated mlp"]
    point = normal(3, *shape)
    found = second_derivative_norm(function, point)
    image = SecondDerivative(function, point).bilinear(found.direction, found.direction)
    assert torch.allclose((image * found.output_direction).sum(dim=1), found.value, rtol=1e-12)
    assert torch.allclose(found.direction.norm(dim=1), torch.ones(3, dtype=torch.float64))


def test_starts_that_are_given_are_used_and_together_is_the_same() -> None:
    function, shape = MAPS["gated mlp"]
    point = normal(3, *shape)
    best = second_derivative_norm(function, point, iterations=40, tolerance=1e-10, together=True)
    again = second_derivative_norm(function, point, restarts=0, starts=best.direction[None])
    assert again.restarts == 1
    assert torch.allclose(again.value, best.value, rtol=1e-9)
    options = {"restarts": 3, "starts": best.direction[None], "iterations": 6, "tolerance": 0.0}
    apart = second_derivative_norm(function, point, **options)
    together = second_derivative_norm(function, point, together=True, **options)
    assert together.restarts == 4
    assert torch.allclose(apart.value, together.value, rtol=1e-9)
    assert torch.equal(apart.restarts_agreeing, together.restarts_agreeing)
    with pytest.raises(ValueError, match="no start"):
        second_derivative_norm(function, point, restarts=0)


def test_a_climb_cut_short_is_not_settled() -> None:
    function, shape = MAPS["gated mlp"]
    found = second_derivative_norm(function, normal(3, *shape), iterations=1, tolerance=1e-12)
    assert not found.settled.any()


@pytest.mark.parametrize("function", [functional.relu, lambda x: x @ normal(5, 4), lambda x: x.detach()])
def test_piecewise_linear_and_constant_maps_have_none(function: Callable[[Tensor], Tensor]) -> None:
    point = normal(3, 5)
    found = second_derivative_norm(function, point)
    assert found.value.tolist() == [0.0] * 3
    assert second_derivative_frobenius(function, point).values.tolist() == [0.0] * 3


def test_an_item_that_is_not_finite_is_nan_and_disturbs_nobody() -> None:
    points = normal(3, 6)
    exact = norm_of(softmax, points)
    points[1, 2] = math.nan
    found = second_derivative_norm(softmax, points, iterations=40, tolerance=1e-8, products=10)
    assert found.value[1].isnan()
    assert not found.settled[1]
    assert torch.allclose(found.value[[0, 2]], exact[[0, 2]], rtol=1e-9)


def test_single_precision_is_close() -> None:
    points = normal(4, 32)
    exact = 2 / (math.sqrt(96) * points.var(dim=1, correction=0))
    norm = nn.LayerNorm(32, eps=0.0, elementwise_affine=False)
    found = second_derivative_norm(norm, points.float())
    assert found.value.dtype == torch.float32
    assert torch.allclose(found.value.double(), exact, rtol=1e-4)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10.0))
def test_rotating_inputs_and_outputs_changes_nothing_and_scaling_squares(seed: int, factor: float) -> None:
    turn_in, turn_out = (torch.linalg.qr(normal(6, 6, seed=seed + k)).Q for k in (1, 2))
    points = normal(2, 6)

    def turned(x: Tensor) -> Tensor:
        return softmax(factor * x @ turn_in) @ turn_out

    # Local maxima exist, so the starts are turned with the inputs.
    starts = normal(2, 2, 6, seed=seed)
    one = second_derivative_norm(softmax, points, restarts=0, starts=starts, together=True)
    other = second_derivative_norm(
        turned, points @ turn_in.T / factor, restarts=0, starts=starts @ turn_in.T, together=True
    )
    assert torch.allclose(other.value, factor**2 * one.value, rtol=1e-6)
    assert torch.equal(other.restarts_agreeing, one.restarts_agreeing)


def test_the_frobenius_norm_is_covered_by_its_error_and_bounds_the_operator_norm() -> None:
    points = 2 * normal(40, 5)
    found = second_derivative_frobenius(softmax, points, samples=64)
    exact = torch.stack([torch.linalg.vector_norm(dense(softmax, point)) for point in points])
    deviation = (found.values - exact) / found.errors
    # The squares are heavy-tailed products of Gaussians, so fewer than a normal's .954.
    assert float((deviation.abs() < 2).double().mean()) > 0.85
    assert abs(float(deviation.mean())) < 0.5
    assert (norm_of(softmax, points, restarts=2) <= exact * (1 + 1e-9)).all()
