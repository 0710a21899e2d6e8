"""XTrace against traces that are known: exact cases, no bias, an error that keeps its promise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hnf_offline.linalg.trace import XTrace, trace
from tests.linalg.planted import symmetric


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


SPECTRA = {
    "flat": torch.linspace(1, 3, 100).tolist(),
    "indefinite": torch.linspace(-1, 2, 100).tolist(),
    "slow decay": [1 / i for i in range(1, 101)],
    "decay with signs": [(-1) ** i / i**2 for i in range(1, 101)],
    "low rank plus identity": [50.0, -30.0, 20.0] + [1.0] * 97,
}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=12), st.integers(0, 5))
def test_a_budget_that_reaches_the_dimension_is_exact(eigenvalues, seed):
    operator = Dense(symmetric(eigenvalues, seed))
    found = trace(operator, products=12, seed=seed)
    assert found.value == pytest.approx(sum(eigenvalues), abs=1e-9)
    assert (found.error, found.products, found.dimension) == (0.0, len(eigenvalues), len(eigenvalues))
    assert operator.products == len(eigenvalues)


@pytest.mark.parametrize("products", [4, 7, 12, 24])
def test_a_multiple_of_the_identity_is_exact_and_costs_no_more_than_the_budget(products):
    operator = Dense(-2.5 * torch.eye(300, dtype=torch.float64))
    found = trace(operator, products=products)
    assert found.value == pytest.approx(-750.0, rel=1e-12)
    assert found.error == pytest.approx(0.0, abs=1e-9)
    assert operator.products == found.products == products - products % 2


def test_low_rank_is_exact_once_the_sketch_holds_it():
    """Five eigenvalues and nothing beside: six vectors less the one that is left out span them all."""
    operator = Dense(symmetric([9.0, -7.0, 4.0, 2.0, -1.0] + [0.0] * 195))
    found = trace(operator, products=12)
    assert found.value == pytest.approx(7.0, abs=1e-8)
    assert found.error == pytest.approx(0.0, abs=1e-8)


def test_a_zero_operator_has_a_zero_trace():
    found = trace(Dense(torch.zeros(50, 50, dtype=torch.float64)))
    assert (found.value, found.error) == (0.0, 0.0)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("products", [12, 24])
def test_no_bias_and_an_error_that_keeps_its_promise(name, products):
    matrix = symmetric(SPECTRA[name])
    truth = sum(SPECTRA[name])
    found = [trace(Dense(matrix), products=products, seed=seed) for seed in range(300)]
    value = torch.tensor([one.value for one in found], dtype=torch.float64)
    error = torch.tensor([one.error for one in found], dtype=torch.float64)
    assert float(value.mean()) == pytest.approx(truth, abs=4 * float(value.std()) / math.sqrt(300))
    off = (value - truth).abs()
    # What `trace` says of itself: .56 to .79 within one error, .80 to .98 within two (a normal one has .68, .95).
    assert 0.53 <= float((off <= error).double().mean()) <= 0.85
    assert 0.78 <= float((off <= 2 * error).double().mean()) <= 0.99
    assert 0.7 <= float(error.square().mean().sqrt() / off.square().mean().sqrt()) <= 1.7


def test_dominant_eigenvalues_do_not_disturb_as_they_disturb_hutchinson():
    matrix = symmetric(SPECTRA["decay with signs"])
    truth = sum(SPECTRA["decay with signs"])
    sketched, plain = [], []
    for seed in range(60):
        sketched.append(trace(Dense(matrix), products=24, seed=seed).value - truth)
        signs = torch.randint(0, 2, (24, 100), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
        plain.append(float(((signs @ matrix) * signs).sum(1).mean()) - truth)
    assert torch.tensor(sketched).square().mean() < 0.01 * torch.tensor(plain).square().mean()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-6, 1e6), st.sampled_from([-1.0, 1.0]))
def test_scaling_the_operator_scales_trace_and_error(seed, size, sign):
    matrix = symmetric(SPECTRA["slow decay"])
    one, many = trace(Dense(matrix), seed=seed), trace(Dense(sign * size * matrix), seed=seed)
    assert many.value == pytest.approx(sign * size * one.value, rel=1e-6)
    assert many.error == pytest.approx(size * one.error, rel=1e-6)


def test_single_precision_gives_the_same_trace():
    matrix = symmetric(SPECTRA["decay with signs"])
    exact = trace(Dense(matrix), seed=3)
    single = trace(Dense(matrix.float()), seed=3, like=torch.zeros(1))
    assert single.value == pytest.approx(exact.value, abs=1e-5)
    assert single.error == pytest.approx(exact.error, abs=1e-5)


def test_many_estimates_can_share_their_products():
    matrices = [symmetric(SPECTRA["flat"], 1), symmetric([3.0, -1.0], 2), symmetric(SPECTRA["indefinite"], 3)]
    estimates = [XTrace(len(matrix), products=8, seed=place) for place, matrix in enumerate(matrices)]
    rounds = 0
    while active := [place for place, one in enumerate(estimates) if not one.finished]:
        rounds += 1
        for place in active:
            estimates[place].advance(matrices[place] @ estimates[place].vector)
    assert rounds == 8
    for place, matrix in enumerate(matrices):
        assert estimates[place].result() == trace(Dense(matrix), products=8, seed=place)
    assert estimates[1].result().value == pytest.approx(2.0)


@pytest.mark.parametrize("size", [4, 40])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_product_that_is_not_finite_is_a_finding(size, broken):
    found = trace(Dense(torch.full((size, size), broken, dtype=torch.float64)))
    assert math.isnan(found.value) and found.error == math.inf


def test_a_budget_that_leaves_no_error_is_refused():
    with pytest.raises(ValueError, match="no error estimate"):
        trace(Dense(torch.eye(9, dtype=torch.float64)), products=3)
