"""Dynamic modes: planted linear maps, numpy's decomposition, and derivatives by finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hnf_offline.linalg.dynamic_modes import eigenvalues, reduced_operator


def planted(width: int, samples: int, seed: int = 0) -> tuple[Tensor, Tensor, np.ndarray]:
    """Samples, their images under a linear map plus a shift, and the map's eigenvalues."""
    generator = np.random.default_rng(seed)
    wanted = np.concatenate([generator.uniform(0.3, 1.3, width - 2), [0.6 + 0.7j, 0.6 - 0.7j]])
    block = np.diag(wanted.real)
    block[-2, -1], block[-1, -2] = 0.7, -0.7
    basis = generator.normal(size=(width, width)) + 2 * np.eye(width)
    operator = basis @ block @ np.linalg.inv(basis)
    before = generator.normal(size=(samples, width)) * np.geomspace(1, 0.1, width) + 3.0
    return torch.tensor(before), torch.tensor(before @ operator.T + 5.0), wanted


def sorted_values(values: np.ndarray) -> np.ndarray:
    return values[np.lexsort((values.imag.round(6), values.real.round(6)))]


@pytest.mark.parametrize("width", [4, 9, 30])
def test_a_planted_maps_eigenvalues_come_back(width: int) -> None:
    before, after, wanted = planted(width, 400)
    found = eigenvalues(reduced_operator(before, after, width)).numpy()
    np.testing.assert_allclose(sorted_values(found), sorted_values(wanted.astype(complex)), atol=1e-6)


def test_noise_and_low_rank_agree_with_numpys_decomposition() -> None:
    """Projected on the leading principal directions, whitening drops out: U^T Y X^+ U has the same eigenvalues."""
    generator = np.random.default_rng(1)
    width, samples, rank = 20, 500, 6
    before = generator.normal(size=(samples, width)) * np.geomspace(3, 0.05, width)
    after = before @ generator.normal(size=(width, width)) / width**0.5 + generator.normal(
        size=(samples, width)
    )
    x, y = (before - before.mean(0)).T, (after - after.mean(0)).T
    u, s, v = np.linalg.svd(x, full_matrices=False)
    u, s, v = u[:, :rank], s[:rank], v[:rank]
    expected = np.linalg.eigvals(u.T @ y @ v.T / s)
    found = eigenvalues(reduced_operator(torch.tensor(before), torch.tensor(after), rank)).numpy()
    np.testing.assert_allclose(sorted_values(found), sorted_values(expected), rtol=2e-3, atol=2e-3)


def test_scaling_the_stream_changes_no_eigenvalue() -> None:
    before, after, _ = planted(6, 300)
    values = eigenvalues(reduced_operator(before, after, 6)).abs().sort().values
    scaled = eigenvalues(reduced_operator(100 * before, 100 * after, 6)).abs().sort().values
    torch.testing.assert_close(values, scaled, rtol=1e-6, atol=1e-8)


def test_directions_without_spread_are_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(200, 2, generator=generator) @ torch.randn(2, 8, generator=generator)
    assert reduced_operator(flat, 2 * flat, 8).shape == (2, 2)
    torch.testing.assert_close(
        eigenvalues(reduced_operator(flat, 2 * flat, 8)).abs(), torch.full((2,), 2.0, dtype=torch.float64)
    )
    assert reduced_operator(torch.ones(50, 4), torch.ones(50, 4), 3).shape == (0, 0)


def test_the_fit_draws_nothing_from_the_global_generator() -> None:
    before, after, _ = planted(6, 100)
    state = torch.get_rng_state()
    reduced_operator(before, after, 3)
    assert torch.equal(state, torch.get_rng_state())


def test_derivatives_of_the_moduli_agree_with_finite_differences() -> None:
    before, after, _ = planted(5, 60)
    after = after + 0.3 * torch.randn(60, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def total(x: Tensor, y: Tensor) -> Tensor:
        return eigenvalues(reduced_operator(x, y, 5)).abs().square().sum()

    torch.autograd.gradcheck(total, (before.requires_grad_(), after.requires_grad_()), atol=1e-5, rtol=1e-3)


def test_derivatives_of_eigenvalues_are_those_of_torch() -> None:
    matrix = torch.randn(
        6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    ).requires_grad_()
    (mine,) = torch.autograd.grad(eigenvalues(matrix).abs().sum(), matrix)
    (torchs,) = torch.autograd.grad(torch.linalg.eigvals(matrix).abs().sum(), matrix)
    torch.testing.assert_close(mine, torchs)


def test_a_matrix_without_a_basis_of_eigenvectors_gives_no_traceback() -> None:
    jordan = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    values = eigenvalues(jordan)
    values.abs().sum().backward()  # type: ignore[no-untyped-call]
    assert values.isnan().all() or values.abs().max() < 1e-6
