"""sigma_max of many maps at once: against dense decompositions, on spectra that are hard for it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hnf_offline.linalg.golub_kahan import SingularValues, largest_singular_values


def orthogonal(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q


def matrix(singular_values: list[float], rows: int, columns: int, seed: int = 0) -> Tensor:
    count = len(singular_values)
    middle = torch.tensor(singular_values, dtype=torch.float64).diag()
    return orthogonal(rows, count, seed) @ middle @ orthogonal(columns, count, seed + 1).T


def start(batch: int, size: int, seed: int = 7) -> Tensor:
    return torch.randn(batch, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Counted:
    """A batch of matrices as a pair of products that are counted."""

    def __init__(self, matrices: Tensor) -> None:
        self.matrices = matrices
        self.products = 0

    def apply(self, vectors: Tensor) -> Tensor:
        self.products += 1
        return torch.einsum("bmn,bn->bm", self.matrices, vectors)

    def apply_transposed(self, vectors: Tensor) -> Tensor:
        return torch.einsum("bmn,bm->bn", self.matrices, vectors)

    def solve(self, vectors: Tensor, **options: float) -> SingularValues:
        return largest_singular_values(self.apply, self.apply_transposed, vectors, **options)


CLUSTERED = {
    "tied pair": [5.0, 5.0, 4.0, 1.0, 0.1],
    "near tie": [5.0, 4.999999, 3.0, 2.0, 1.0],
    "cluster": [3.0 - 1e-3 * k for k in range(8)],
    "isometry": [2.0] * 8,
    "ill-conditioned": [10.0 ** (3 - k) for k in range(12)],
    "rank one": [7.0],
    "flat": [1.0 + 0.05 * k for k in range(10)],
}


@pytest.mark.parametrize("shape", [(12, 16), (16, 12), (12, 12)])
def test_converged_values_are_those_of_the_dense_decomposition(shape: tuple[int, int]) -> None:
    batch = torch.stack([matrix(values, *shape, seed=seed) for seed, values in enumerate(CLUSTERED.values())])
    found = Counted(batch).solve(start(len(batch), shape[1]), residual=1e-12, maximum=40)
    exact = torch.linalg.svdvals(batch)[:, 0]
    assert found.certified.all()
    assert torch.allclose(found.values, exact, rtol=1e-10, atol=0.0)
    # The right vector attains the value.
    reached = torch.linalg.vector_norm(torch.einsum("bmn,bn->bm", batch, found.vectors), dim=1)
    assert torch.allclose(reached, exact, rtol=1e-10, atol=0.0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 15), st.integers(1, 15), st.integers(1, 5), st.integers(0, 1000))
def test_a_singular_value_lies_within_the_residual_and_none_is_exceeded(
    rows: int, columns: int, budget: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = torch.randn(3, rows, columns, generator=generator, dtype=torch.float64)
    found = Counted(batch).solve(start(3, columns, seed), maximum=budget, residual=1e-12)
    exact = torch.linalg.svdvals(batch)
    nearest = (exact - found.values[:, None]).abs().amin(dim=1)
    # A wide map also has the singular values 0 of its null space.
    nearest = torch.minimum(nearest, found.values) if columns > rows else nearest
    assert (nearest <= found.residuals + 1e-9).all()
    assert (found.values <= exact[:, 0] * (1 + 1e-12)).all()


def test_the_residual_is_that_of_the_ritz_vectors() -> None:
    batch = start(2, 20 * 30).reshape(2, 20, 30)
    found = Counted(batch).solve(start(2, 30), maximum=4)
    image = torch.einsum("bmn,bn->bm", batch, found.vectors)
    left = image / found.values[:, None]
    rest = torch.einsum("bmn,bm->bn", batch, left) - found.values[:, None] * found.vectors
    assert torch.allclose(torch.linalg.vector_norm(rest, dim=1), found.residuals, rtol=1e-8)


def test_items_do_not_feel_each_other() -> None:
    batch = torch.stack([matrix(CLUSTERED[name], 12, 12) for name in ("cluster", "rank one", "flat")])
    together = Counted(batch).solve(start(3, 12), residual=1e-12, maximum=30)
    for item in range(3):
        alone = Counted(batch[item : item + 1]).solve(
            start(3, 12)[item : item + 1], residual=1e-12, maximum=30
        )
        assert float(alone.values[0]) == pytest.approx(float(together.values[item]), rel=1e-12)


def test_a_stopped_solver_is_not_certified_and_spends_no_more_than_its_budget() -> None:
    counted = Counted(torch.linspace(1, 0, 300, dtype=torch.float64).diag()[None])
    found = counted.solve(start(1, 300), residual=1e-6, maximum=5)
    assert not found.certified[0]
    assert counted.products == found.products == 5


def test_it_stops_when_all_have_settled() -> None:
    counted = Counted(torch.stack([matrix([9.0, 1.0, 0.5], 20, 20), matrix([5.0, 0.1], 20, 20)]))
    found = counted.solve(start(2, 20), residual=0.01, maximum=20)
    assert counted.products == found.products == 3
    assert found.certified.all()


def test_a_zero_map_has_zero_and_disturbs_nobody() -> None:
    batch = torch.stack([torch.zeros(6, 6, dtype=torch.float64), matrix([3.0, 2.0, 1.0], 6, 6)])
    found = Counted(batch).solve(start(2, 6), residual=1e-10)
    assert found.values.tolist() == pytest.approx([0.0, 3.0])
    assert found.certified.all()


@pytest.mark.parametrize("fault", [math.nan, math.inf])
def test_a_map_that_is_not_finite_is_nan_and_disturbs_nobody(fault: float) -> None:
    batch = torch.stack([matrix([3.0, 2.0, 1.0], 6, 6), matrix([4.0, 1.0], 6, 6)])
    batch[0, 2, 3] = fault
    found = Counted(batch).solve(start(2, 6), residual=1e-10)
    assert math.isnan(float(found.values[0]))
    assert math.isinf(float(found.residuals[0]))
    assert found.certified.tolist() == [False, True]
    assert float(found.values[1]) == pytest.approx(4.0)


def test_single_precision_stays_single_and_is_close() -> None:
    batch = start(4, 40 * 30).reshape(4, 40, 30).float()
    found = Counted(batch).solve(start(4, 30).float(), residual=1e-4, maximum=30)
    assert found.values.dtype == torch.float32
    assert torch.allclose(found.values, torch.linalg.svdvals(batch)[:, 0], rtol=1e-5)


def test_a_start_without_direction_is_refused() -> None:
    counted = Counted(torch.eye(3)[None])
    with pytest.raises(ValueError, match="start vectors"):
        counted.solve(torch.zeros(1, 3))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-6, 1e6))
def test_rotating_either_side_changes_nothing_and_scaling_scales(seed: int, factor: float) -> None:
    one = matrix([5.0, 3.0, 1.0], 6, 5)
    left, right = orthogonal(6, 6, seed), orthogonal(5, 5, seed + 1)
    other = factor * left @ one @ right.T
    found = Counted(torch.stack([one, other])).solve(start(2, 5), residual=1e-12)
    assert float(found.values[1]) == pytest.approx(factor * float(found.values[0]), rel=1e-10)
