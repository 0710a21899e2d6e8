"""Both ends of the softmax Jacobian's spectrum against dense eigenvalues and closed forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hnf_offline.linalg.softmax import softmax_spectrum


def dense(p: Tensor) -> Tensor:
    """Eigenvalues of diag(p) - p p' without the structural zero, ascending."""
    return torch.linalg.eigvalsh(torch.diag(p) - torch.outer(p, p))[1:]


@given(seed=st.integers(0, 999), keys=st.integers(2, 24), scale=st.floats(0.01, 6))
def test_both_ends_and_the_mean_equal_those_of_the_dense_matrix(seed: int, keys: int, scale: float) -> None:
    logits = scale * torch.randn(keys, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    p = logits.softmax(0)
    values = dense(p)
    found = softmax_spectrum(torch.nn.functional.pad(p, (0, 3))[None], torch.tensor([keys]))  # 3 masked keys
    assert found.largest.item() == pytest.approx(values[-1].item(), rel=1e-10, abs=1e-15)
    assert found.smallest.item() == pytest.approx(values[0].item(), rel=1e-6, abs=1e-15)
    assert found.rms.item() == pytest.approx(values.square().mean().sqrt().item(), rel=1e-9, abs=1e-15)


def test_two_keys_have_one_eigenvalue_twice_the_product() -> None:
    p = torch.tensor([[0.9, 0.1], [1 - 1e-14, 1e-14]], dtype=torch.float64)
    found = softmax_spectrum(p, torch.tensor([2, 2]))
    twice = 2 * p.prod(dim=1)
    for end in (found.largest, found.smallest, found.rms):
        assert end.tolist() == pytest.approx(twice.tolist(), rel=1e-9)


@pytest.mark.parametrize("keys", [2, 3, 17])
def test_a_uniform_row_has_all_eigenvalues_at_one_over_n(keys: int) -> None:
    found = softmax_spectrum(torch.full((1, keys), 1 / keys, dtype=torch.float64), torch.tensor([keys]))
    for value in (found.largest, found.smallest, found.rms):
        assert value.item() == pytest.approx(1 / keys, rel=1e-9)


def test_the_small_end_is_exact_where_a_dense_solver_sees_rounding() -> None:
    """Of p = (1 - a - b, a, b) with b << a << 1 the smallest is 3/2 b: dense solvers lose it."""
    a, b = 1e-6, 1e-30
    found = softmax_spectrum(torch.tensor([[1 - a - b, a, b]], dtype=torch.float64), torch.tensor([3]))
    # trace and the sum of the principal minors give the two eigenvalues of order a and b: 2 a and 3 b / 2
    assert found.largest.item() == pytest.approx(2 * a, rel=1e-5)
    assert found.smallest.item() == pytest.approx(1.5 * b, rel=1e-5)


def test_a_key_whose_probability_underflows_leaves_a_direction_that_is_lost() -> None:
    found = softmax_spectrum(torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64), torch.tensor([3]))
    assert found.smallest.item() == 0.0
    assert found.largest.item() == pytest.approx(0.5)
