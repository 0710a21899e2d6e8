"""Driven Krylov spaces against dense spectra; lock-step against one by one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hnf_offline.linalg.krylov import Basis, KrylovSpace, advance_together
from hnf_offline.linalg.stopping import STANDARD, StopRule
from tests.linalg.planted import start, symmetric

#: Numbers whose squares are still numbers: what is smaller than 1e-150 has none in float64.
ORDINARY = st.floats(-50, 50).filter(lambda value: value == 0 or abs(value) > 1e-100)


def driven(matrix: torch.Tensor, first: torch.Tensor, rule: StopRule) -> KrylovSpace:
    space = KrylovSpace(first, rule)
    while not space.finished:
        space.advance(matrix @ space.vector)
    return space


def test_a_basis_stays_orthonormal_while_it_grows_past_its_blocks():
    basis = Basis()
    generator = torch.Generator().manual_seed(0)
    basis.append(torch.eye(40, dtype=torch.float64)[0])
    for _ in range(20):
        coefficients, rest = basis.remainder(torch.randn(40, generator=generator, dtype=torch.float64))
        assert coefficients.shape == (len(basis),)
        basis.append(rest / rest.norm())
    rows = torch.stack([basis[place] for place in range(21)])
    torch.testing.assert_close(rows @ rows.T, torch.eye(21, dtype=torch.float64), atol=1e-14, rtol=0)
    torch.testing.assert_close(basis.combine(basis.coefficients(rows[13])), rows[13])


def test_earlier_vectors_keep_their_memory_when_the_basis_grows():
    basis = Basis()
    for row in torch.eye(4, 9):
        basis.append(row)
    before = basis[0].data_ptr()
    basis.append(torch.eye(9)[5])
    assert basis[0].data_ptr() == before


@settings(max_examples=30, deadline=None)
@given(st.lists(ORDINARY, min_size=2, max_size=20), st.integers(0, 5))
def test_ritz_values_residuals_and_vector_are_those_of_the_operator(eigenvalues, seed):
    matrix = symmetric(eigenvalues, seed)
    found = driven(matrix, start(len(eigenvalues), seed), StopRule(0.0, 1, maximum=3)).result()
    scale = max(1.0, *(abs(value) for value in eigenvalues))
    assert min(eigenvalues) - 1e-9 * scale <= found.smallest.value <= found.largest.value
    assert found.largest.value <= max(eigenvalues) + 1e-9 * scale
    assert float(found.vector @ matrix @ found.vector) == pytest.approx(found.largest.value, abs=1e-9 * scale)
    rest = matrix @ found.vector - found.largest.value * found.vector
    assert float(rest.norm()) == pytest.approx(found.largest.residual, abs=1e-7 * scale)
    assert found.asymmetry < 1e-12


def test_lock_step_gives_what_one_by_one_gives_whatever_the_sizes():
    matrices = [symmetric([*torch.linspace(-1, 2, size), 5.0, -4.0], size) for size in (3, 30, 11, 60)]
    alone = [driven(matrix, start(len(matrix)), STANDARD).result() for matrix in matrices]
    spaces = [KrylovSpace(start(len(matrix)), STANDARD) for matrix in matrices]
    while running := [place for place, space in enumerate(spaces) if not space.finished]:
        advance_together(
            [spaces[place] for place in running],
            [matrices[place] @ spaces[place].vector for place in running],
        )
    for one, space in zip(alone, spaces, strict=True):
        other = space.result()
        assert (other.largest, other.smallest, other.products) == (one.largest, one.smallest, one.products)
        assert torch.equal(other.vector, one.vector)
    assert len({one.products for one in alone}) > 1  # they did not all end at the same step


def test_a_step_takes_one_transfer_however_many_spaces(monkeypatch):
    spaces = [KrylovSpace(start(20, seed), STANDARD) for seed in range(7)]
    images = [torch.linspace(1, 2, 20, dtype=torch.float64) * space.vector for space in spaces]
    read: list[str] = []
    for name in ("tolist", "item", "__float__", "__bool__", "__int__"):
        original = getattr(torch.Tensor, name)

        def noted(tensor, original=original, name=name):
            read.append(name)
            return original(tensor)

        monkeypatch.setattr(torch.Tensor, name, noted)
    advance_together(spaces, images)
    # What is read after it are the small matrices that were built from it on the host.
    assert read[0] == "tolist"
    assert read.count("tolist") == 1


def test_a_space_that_is_not_finite_ends_alone():
    good, bad = KrylovSpace(start(6), STANDARD), KrylovSpace(start(6), STANDARD)
    advance_together([good, bad], [2 * good.vector, torch.full_like(bad.vector, math.inf)])
    assert bad.finished and math.isnan(bad.result().largest.value)
    assert not bad.result().largest.certified
    assert good.result().largest.value == pytest.approx(2.0)


def test_a_zero_start_ends_without_a_number():
    space = driven(torch.eye(5), torch.zeros(5), STANDARD)
    assert (space.products, math.isnan(space.result().largest.value)) == (1, True)


def test_an_operator_that_is_not_quite_symmetric_is_told_and_its_residual_stays_true():
    generator = torch.Generator().manual_seed(3)
    matrix = symmetric([*torch.linspace(-1, 1, 30), 4.0])
    matrix = matrix + 1e-3 * torch.randn(31, 31, generator=generator, dtype=torch.float64)
    found = driven(matrix, start(31), StopRule(0.0, 1, maximum=12)).result()
    rest = matrix @ found.vector - found.largest.value * found.vector
    assert float(rest.norm()) == pytest.approx(found.largest.residual, rel=1e-6)
    assert 1e-4 < found.asymmetry < 1e-2


def test_the_estimated_error_is_sharper_than_the_residual_and_near_the_true_one():
    values = [*torch.linspace(-1, 1, 200).tolist(), 5.0]
    matrix = symmetric(values)
    sharper = 0
    for budget in range(3, 12):
        end = driven(matrix, start(201), StopRule(0.0, 1, maximum=budget)).result().largest
        assert abs(end.value - 5.0) <= end.error + 1e-9
        assert end.error <= end.residual
        sharper += end.error < 0.2 * end.residual
    assert sharper >= 5


def test_a_space_without_the_second_end_stops_earlier():
    matrix = symmetric([*torch.linspace(-1, 0.5, 200).tolist(), 5.0])
    both = driven(matrix, start(201), StopRule(0.01, 3)).products
    assert driven(matrix, start(201), StopRule(0.01, 3, ends="largest")).products < both


def test_in_single_precision_on_the_device_of_the_start():
    matrix = symmetric([*torch.linspace(-1, 1, 60).tolist(), 5.0]).float()
    found = driven(matrix, start(61).float(), StopRule(1e-4, 3)).result()
    assert found.vector.dtype == torch.float32
    assert found.largest.value == pytest.approx(5.0, rel=1e-5)
    assert found.largest.certified
