"""Stochastic Lanczos quadrature against spectra that are known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hnf_offline.linalg.density import spectral_density
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


#: A bulk around zero, four eigenvalues far above and one far below.
OUTLIERS = [2.0, 3.0, 5.0, 8.0, -4.0, *torch.linspace(-0.5, 0.5, 395).tolist()]
MATRIX = symmetric(OUTLIERS)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-40, 40), min_size=1, max_size=24), st.integers(0, 3))
def test_a_spectrum_within_the_budget_is_exact(eigenvalues, seed):
    operator = Dense(symmetric(eigenvalues, seed))
    found = spectral_density(operator, probes=2, steps=12)
    assert operator.products == found.products == len(eigenvalues)
    torch.testing.assert_close(
        found.nodes, torch.tensor(sorted(eigenvalues), dtype=torch.float64), atol=1e-7, rtol=0
    )
    for value in (-3.5, 0.5, 7.5):
        above = sum(one > value for one in eigenvalues) / len(eigenvalues)
        assert found.share_above(value).value == pytest.approx(above)
        assert found.share_below(value).value == pytest.approx(1 - above)
        assert found.share_above(value).error == 0.0
        assert found.resolved(value)
    total = sum(abs(one) for one in eigenvalues)
    below = sum(-one for one in eigenvalues if one < 0)
    assert found.negative_energy().value == pytest.approx(below / total if total else 0.0, abs=1e-6)


def test_eigenvalues_above_the_bulk_are_counted():
    counts, inside = [], 0
    for seed in range(40):
        found = spectral_density(Dense(MATRIX), probes=4, steps=20, seed=seed)
        share = found.share_above(1.0)
        assert found.resolved(1.0)
        counts.append(400 * share.value)
        inside += abs(400 * share.value - 4) <= 800 * share.error
    count = torch.tensor(counts)
    # Four components squared, mean 1 and variance 2 each, over four probes: 4 -+ 1.41.
    assert float(count.mean()) == pytest.approx(4.0, abs=4 * math.sqrt(2 / 40))
    assert float(count.std()) == pytest.approx(math.sqrt(2), rel=0.35)
    assert inside >= 0.75 * 40  # four probes cannot know their own spread well


def test_nothing_above_the_largest_eigenvalue_is_ever_seen():
    found = spectral_density(Dense(MATRIX), probes=3, steps=15)
    share = found.share_above(8.0 + 1e-9)
    assert (share.value, share.error) == (0.0, 0.0)
    assert found.share_below(-4.0 - 1e-9).value == 0.0


def test_few_steps_do_not_resolve_the_inside_of_a_bulk():
    found = spectral_density(Dense(MATRIX), probes=3, steps=8)
    assert not found.resolved(0.1)


def test_the_negative_energy_is_that_of_the_dense_spectrum():
    spectrum = torch.tensor(OUTLIERS, dtype=torch.float64)
    truth = float(-spectrum[spectrum < 0].sum() / spectrum.abs().sum())
    found = [
        spectral_density(Dense(MATRIX), probes=4, steps=16, seed=seed).negative_energy() for seed in range(16)
    ]
    values = torch.tensor([one.value for one in found])
    assert float(values.mean()) == pytest.approx(truth, abs=0.01)
    errors = torch.tensor([one.error for one in found])
    assert float(((values - truth).abs() <= 2 * errors).double().mean()) >= 0.6


def test_the_moments_up_to_twice_the_steps_are_those_of_each_start_vector():
    """Gauss quadrature: five nodes give the moments 0 to 9 of what the vector sees."""
    generator = torch.Generator().manual_seed(11)
    found = spectral_density(Dense(MATRIX), probes=2, steps=5, seed=11)
    for probe in found.probes:
        vector = torch.nn.functional.normalize(
            torch.randn(400, generator=generator, dtype=torch.float64), dim=0
        )
        image = vector
        for power in range(10):
            moment = float(probe.weights @ probe.nodes**power)
            assert moment == pytest.approx(float(vector @ image), rel=1e-9, abs=1e-9)
            image = MATRIX @ image


def test_the_curve_integrates_to_one_and_lies_where_the_spectrum_is():
    found = spectral_density(Dense(MATRIX), probes=3, steps=30)
    grid = torch.linspace(-8, 12, 4001, dtype=torch.float64)
    curve = found.curve(grid, width=0.1)
    assert float(torch.trapezoid(curve, grid)) == pytest.approx(1.0, abs=1e-6)
    assert float(curve[(grid > 1.1) & (grid < 1.5)].max()) < 0.01 * float(curve.max())
    # One eigenvalue of 400, as a Gaussian.
    at = float(curve[(grid - 8).abs().argmin()])
    assert at == pytest.approx(1 / 400 / (0.1 * math.sqrt(2 * math.pi)), rel=1.5)
    assert at > 0


def test_the_same_seed_gives_the_same_and_weights_sum_to_one():
    one, two = (spectral_density(Dense(MATRIX), probes=2, steps=10, seed=4) for _ in range(2))
    assert torch.equal(one.nodes, two.nodes)
    assert float(one.weights.sum()) == pytest.approx(1.0)
    assert one.products == 20
    other = spectral_density(Dense(MATRIX), probes=2, steps=10, seed=5)
    assert not torch.equal(one.nodes, other.nodes)


def test_an_invariant_subspace_ends_a_probe_early():
    """Three different eigenvalues: three steps see all there is."""
    operator = Dense(symmetric([1.0] * 30 + [2.0] * 40 + [-1.0] * 30))
    found = spectral_density(operator, probes=4, steps=20)
    assert operator.products == found.products == 12
    assert found.share_below(0.0).value == pytest.approx(0.3, abs=0.15)


@pytest.mark.parametrize("size", [6, 60])
def test_a_product_that_is_not_finite_is_a_finding(size):
    found = spectral_density(
        Dense(torch.full((size, size), math.nan, dtype=torch.float64)), probes=2, steps=5
    )
    assert found.probes == ()
    for share in (found.share_above(1.0), found.share_below(0.0), found.negative_energy()):
        assert math.isnan(share.value) and share.error == math.inf
    assert not found.resolved(1.0)


def test_one_probe_is_refused():
    with pytest.raises(ValueError, match="tells no error"):
        spectral_density(Dense(torch.eye(9, dtype=torch.float64)), probes=1, steps=3)
