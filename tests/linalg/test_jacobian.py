"""Jacobians of layer maps: against torch's dense ones and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hnf_offline.linalg.golub_kahan import largest_singular_values
from hnf_offline.linalg.jacobian import frobenius_norms, linear_maps, root_mean_square, token_jacobians


def tokens(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mlp() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 24), nn.GELU(), nn.Linear(24, 5)).double()


class Attention(nn.Module):
    """Causal attention with two heads, by the fused call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.project = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        batch, length, width = inputs.shape
        query, key, value = (
            part.view(batch, length, 2, 4).transpose(1, 2)
            for part in self.project(3 * inputs).split(width, dim=2)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(inputs.shape))


@pytest.mark.parametrize("memory", [1, 10_000, 2**28])
def test_token_jacobians_are_the_dense_ones_whatever_the_budget(memory: int) -> None:
    function, points = mlp(), tokens(4, 6)
    found = token_jacobians(function, points, memory=memory)
    exact = torch.stack([torch.autograd.functional.jacobian(function, row) for row in points])
    assert found.shape == (4, 5, 6)
    assert not found.requires_grad
    assert torch.allclose(found, exact, atol=1e-13)


@pytest.mark.parametrize("width", [3, 8, 64])
def test_layer_norm_has_two_null_directions_and_is_an_isometry_else(width: int) -> None:
    points = tokens(5, width) * 3 + 1
    sigma = points.std(dim=1, correction=0)
    norm = nn.LayerNorm(width, eps=0.0, elementwise_affine=False)
    values = torch.linalg.svdvals(token_jacobians(norm, points)) * sigma[:, None]
    assert torch.allclose(values[:, :-2], torch.ones(5, width - 2, dtype=torch.float64), atol=1e-9)
    assert (values[:, -2:] < 1e-9).all()


@pytest.mark.parametrize("width", [2, 8, 64])
def test_rms_norm_has_one_null_direction_and_is_an_isometry_else(width: int) -> None:
    points = tokens(5, width) * 3 + 1
    size = points.square().mean(dim=1).sqrt()
    norm = nn.RMSNorm(width, eps=0.0, elementwise_affine=False)
    values = torch.linalg.svdvals(token_jacobians(norm, points)) * size[:, None]
    assert torch.allclose(values[:, :-1], torch.ones(5, width - 1, dtype=torch.float64), atol=1e-9)
    assert (values[:, -1:] < 1e-9).all()


def test_epsilon_lifts_the_radial_null_direction_to_epsilon_over_sigma_cubed() -> None:
    points, epsilon = tokens(3, 16), 1e-3
    scale = (points.var(dim=1, correction=0) + epsilon).sqrt()
    norm = nn.LayerNorm(16, eps=epsilon, elementwise_affine=False)
    values = torch.linalg.svdvals(token_jacobians(norm, points))
    assert torch.allclose(values[:, -2], epsilon / scale**3, rtol=1e-8)


def test_softmax_is_the_covariance_of_its_probabilities() -> None:
    logits = tokens(4, 7) * 2
    probabilities = logits.softmax(dim=-1)
    exact = torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None, :]
    found = token_jacobians(lambda rows: rows.softmax(dim=-1), logits)
    assert torch.allclose(found, exact, atol=1e-14)
    # Lipschitz constant 1/2, not 1.
    assert (torch.linalg.svdvals(found)[:, 0] <= 0.5 + 1e-12).all()


def test_a_map_that_mixes_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="not per token"):
        token_jacobians(lambda rows: rows - rows.mean(dim=0), tokens(4, 3))


def test_a_token_that_is_not_finite_leaves_the_others_alone() -> None:
    function, points = mlp(), tokens(4, 6)
    exact = token_jacobians(function, points)
    points[2, 1] = math.inf
    found = token_jacobians(function, points)
    assert found[2].isnan().any()
    assert torch.allclose(found[[0, 1, 3]], exact[[0, 1, 3]], atol=1e-13)


def test_products_of_a_sequence_map_are_those_of_the_dense_jacobian() -> None:
    function = Attention().double()
    point = tokens(2 * 5, 8).reshape(2, 5, 8)
    map_ = linear_maps(function, point)
    dense = torch.stack([
        torch.autograd.functional.jacobian(lambda one: function(one[None])[0], item).reshape(40, 40)
        for item in point
    ])
    forward, backward = tokens(2, 40, seed=3), tokens(2, 40, seed=4)
    # Twice, since the graph is used again.
    for _ in range(2):
        assert torch.allclose(map_.apply(forward), torch.einsum("bmn,bn->bm", dense, forward), atol=1e-12)
    assert torch.allclose(
        map_.apply_transposed(backward), torch.einsum("bmn,bm->bn", dense, backward), atol=1e-12
    )
    assert torch.allclose(map_.value, function(point).detach(), atol=1e-13)
    assert not map_.value.requires_grad
    found = largest_singular_values(map_.apply, map_.apply_transposed, forward, residual=1e-10, maximum=40)
    assert torch.allclose(found.values, torch.linalg.svdvals(dense)[:, 0], rtol=1e-10)


def test_products_leave_the_parameters_without_gradients() -> None:
    function = Attention().double()
    map_ = linear_maps(function, tokens(2 * 5, 8).reshape(2, 5, 8))
    map_.apply(tokens(2, 40))
    map_.apply_transposed(tokens(2, 40))
    assert all(parameter.grad is None for parameter in function.parameters())


def test_affine_and_constant_maps() -> None:
    weight = tokens(3, 4)
    affine = linear_maps(lambda rows: rows @ weight.T + 1.0, tokens(2, 4, seed=1))
    vectors = tokens(2, 4, seed=2)
    assert torch.allclose(affine.apply(vectors), vectors @ weight.T)
    constant = linear_maps(lambda rows: rows.detach()[:, :3], tokens(2, 4))
    assert torch.equal(constant.apply(vectors), torch.zeros(2, 3, dtype=torch.float64))
    assert torch.equal(
        constant.apply_transposed(constant.apply(vectors)), torch.zeros(2, 4, dtype=torch.float64)
    )


def test_frobenius_norm_from_probes_covers_the_exact_one() -> None:
    generator = torch.Generator().manual_seed(5)
    matrices = torch.randn(200, 20, 10, generator=generator, dtype=torch.float64)
    found = frobenius_norms(
        lambda rows: torch.einsum("bmn,bn->bm", matrices, rows), tokens(200, 10), probes=16
    )
    exact = torch.linalg.matrix_norm(matrices)
    deviation = (found.values - exact) / found.errors
    # Standard errors from 16 probes: Student's t, of which 2 errors hold .936.
    assert 0.88 < float((deviation.abs() < 2).double().mean()) < 0.98
    assert abs(float(deviation.mean())) < 0.35


def test_root_mean_square_of_equal_squares_has_no_error() -> None:
    found = root_mean_square([torch.tensor([4.0, 0.0])] * 3)
    assert found.values.tolist() == [2.0, 0.0]
    assert found.errors.tolist() == [0.0, 0.0]
