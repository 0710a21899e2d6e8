"""The largest singular value followed along: against torch's decomposition while the matrix drifts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hnf_offline.linalg.singular import LargestSingularValue


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 1000))
def test_it_is_never_above_and_hardly_below(rows: int, columns: int, seed: int) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    found = float(LargestSingularValue(matrix, sweeps=60).estimate(matrix))
    exact = float(torch.linalg.svdvals(matrix)[0])
    assert found <= exact * (1 + 1e-5)
    assert found >= exact * (1 - 1e-2)


def test_it_follows_a_drifting_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(64, 48, generator=generator)
    leading = LargestSingularValue(matrix)
    for _ in range(100):
        matrix = matrix + 0.02 * torch.randn(64, 48, generator=generator)
        exact = float(torch.linalg.svdvals(matrix)[0])
        assert float(leading.estimate(matrix)) == pytest.approx(exact, rel=1e-2)


def test_it_notices_when_another_direction_overtakes() -> None:
    left, right = (
        torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(s))).Q for s in (1, 2)
    )
    sizes = torch.linspace(1.0, 0.1, 10)
    leading = LargestSingularValue(left @ sizes.diag() @ right.T)
    for growing in torch.linspace(0.8, 3.0, 12):
        sizes[2] = growing
        found = float(leading.estimate(left @ sizes.diag() @ right.T))
    assert found == pytest.approx(3.0, rel=1e-4)


def test_a_zero_matrix_has_zero() -> None:
    zero = torch.zeros(4, 3)
    assert float(LargestSingularValue(zero).estimate(zero)) == 0.0


def test_a_matrix_that_is_not_finite_has_none_and_raises_nothing() -> None:
    matrix = torch.ones(4, 3)
    leading = LargestSingularValue(matrix)
    matrix[0, 0] = float("inf")
    assert leading.estimate(matrix).isnan()
