"""Lanczos against dense spectra, closed forms and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, eigsh

from hnf_offline.linalg.lanczos import lanczos_extremes


class Dense:
    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix
        self.products = 0

    @property
    def dimension(self) -> int:
        return len(self.matrix)

    def __call__(self, vector: torch.Tensor) -> torch.Tensor:
        self.products += 1
        return self.matrix @ vector


def symmetric(eigenvalues: list[float], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(
        torch.randn(len(eigenvalues), len(eigenvalues), generator=generator, dtype=torch.float64)
    )
    return basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T


def start(size: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=24), st.integers(0, 5))
def test_a_full_krylov_space_gives_both_ends_exactly(eigenvalues, seed):
    operator = Dense(symmetric(eigenvalues, seed))
    found = lanczos_extremes(operator, start(len(eigenvalues), seed), residual=1e-10, maximum=64)
    scale = max(1.0, *(abs(value) for value in eigenvalues))
    assert found.largest.value == pytest.approx(max(eigenvalues), abs=1e-7 * scale)
    assert found.smallest.value == pytest.approx(min(eigenvalues), abs=1e-7 * scale)


def test_agrees_with_scipy_on_an_indefinite_spectrum():
    values = [*np.linspace(-3, 4, 200), 9.0, -8.5]
    matrix = symmetric(list(values))
    reference = LinearOperator(matrix.shape, matvec=lambda vector: matrix.numpy() @ vector, dtype=np.float64)
    found = lanczos_extremes(Dense(matrix), start(len(values)), residual=1e-6, maximum=120)
    assert found.largest.value == pytest.approx(eigsh(reference, k=1, which="LA")[0][0], rel=1e-6)
    assert found.smallest.value == pytest.approx(eigsh(reference, k=1, which="SA")[0][0], rel=1e-6)
    assert found.largest.certified and found.smallest.certified


def test_sign_is_part_of_an_eigenvalue():
    found = lanczos_extremes(Dense(symmetric([-7.0, -2.0, -1.0, 0.5])), start(4), residual=1e-8)
    assert found.largest.value == pytest.approx(0.5)
    assert found.smallest.value == pytest.approx(-7.0)


def test_an_eigenvalue_lies_within_the_residual_and_the_value_never_overshoots():
    values = list(np.geomspace(1e-3, 10, 60))
    matrix = symmetric(values)
    for budget in range(1, 20):
        found = lanczos_extremes(Dense(matrix), start(60), residual=0.0, maximum=budget)
        assert found.largest.value <= 10 + 1e-9
        assert min(abs(found.largest.value - value) for value in values) <= found.largest.residual + 1e-9
        rest = matrix @ found.vector - found.largest.value * found.vector
        assert float(rest.norm()) == pytest.approx(found.largest.residual, rel=1e-5, abs=1e-8)


def test_a_stopped_solver_is_not_certified_and_spends_no_more_than_its_budget():
    operator = Dense(symmetric(list(np.linspace(0, 1, 300))))
    found = lanczos_extremes(operator, start(300), residual=1e-6, maximum=5)
    assert not found.largest.certified
    assert operator.products == found.products == 5


def test_a_zero_operator_has_zero_ends_after_one_product():
    found = lanczos_extremes(Dense(torch.zeros(8, 8, dtype=torch.float64)), start(8))
    assert (found.largest.value, found.smallest.value, found.products) == (0.0, 0.0, 1)
    assert found.largest.certified


def test_a_non_finite_operator_is_nan_and_not_certified():
    found = lanczos_extremes(Dense(torch.full((4, 4), math.nan, dtype=torch.float64)), start(4))
    assert math.isnan(found.largest.value)
    assert not found.largest.certified


def test_a_zero_start_is_refused():
    with pytest.raises(ValueError, match="start vector"):
        lanczos_extremes(Dense(torch.eye(3)), torch.zeros(3))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_rotating_the_operator_changes_nothing(seed):
    matrix = symmetric([5.0, 3.0, 1.0, -2.0, -4.0], seed=3)
    rotation, _ = torch.linalg.qr(
        torch.randn(5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )
    one = lanczos_extremes(Dense(matrix), start(5), residual=1e-12)
    two = lanczos_extremes(Dense(rotation @ matrix @ rotation.T), rotation @ start(5), residual=1e-12)
    assert one.largest.value == pytest.approx(two.largest.value, abs=1e-9)
    assert one.smallest.value == pytest.approx(two.smallest.value, abs=1e-9)
