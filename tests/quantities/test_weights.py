"""Distribution, spectra and changes of weights, where the answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hnf_offline.quantities import weight_spectrum
from hnf_offline.quantities.key_query_changes import (
    increment_spectra,
    second_order_effective_rank,
    second_order_norm,
    second_order_stable_rank,
    third_order_effective_rank,
    third_order_norm,
    third_order_stable_rank,
)
from hnf_offline.quantities.weight_changes import (
    distance_from_first,
    moment_cosine,
    update_cosine,
    update_norm,
    update_ratio,
)
from hnf_offline.quantities.weight_spectrum import (
    MatrixSpectra,
    condition,
    effective_rank,
    matrix_spectra,
    matrix_spectrum,
    nuclear_norm,
    sigma_max,
    sigma_median,
    sigma_min,
    stable_rank,
)
from hnf_offline.quantities.weight_tails import tail_exponent
from hnf_offline.quantities.weights import (
    distance_to_neighbour,
    weight_deviation,
    weight_excess_kurtosis,
    weight_largest,
    weight_mean,
    weight_quantile_01,
    weight_quantile_25,
    weight_quantile_50,
    weight_quantile_75,
    weight_quantile_99,
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_singular_values(values: list[float] | np.ndarray, rows: int, columns: int, seed: int = 0) -> Tensor:
    left = torch.linalg.qr(drawn(rows, len(values), seed=seed)).Q
    right = torch.linalg.qr(drawn(columns, len(values), seed=seed + 1)).Q
    return left * torch.as_tensor(np.asarray(values)) @ right.T


# distribution


def test_moments_and_quantiles_of_one_to_a_hundred() -> None:
    weight = torch.arange(1.0, 101.0, dtype=torch.float64)
    assert weight_mean(weight).item() == pytest.approx(50.5)
    centred = weight - weight.mean()
    assert weight_deviation(centred).item() == pytest.approx(math.sqrt((100**2 - 1) / 12))
    # of a discrete uniform distribution on n values: -6/5 (n^2 + 1) / (n^2 - 1)
    assert weight_excess_kurtosis(centred, centred.sort(dim=-1).values).item() == pytest.approx(
        -1.2 * (100**2 + 1) / (100**2 - 1)
    )
    told = [
        one(weight).item()
        for one in (
            weight_quantile_01,
            weight_quantile_25,
            weight_quantile_50,
            weight_quantile_75,
            weight_quantile_99,
        )
    ]
    assert told == [1, 25, 50, 75, 99]
    assert weight_quantile_01(weight[:1]).item() == weight_quantile_99(weight[:1]).item() == 1
    assert weight_largest(torch.tensor([-7.0, 0.0, 3.0])).item() == 7


def test_unrelated_layers_are_at_distance_one_and_equal_ones_at_none() -> None:
    one, other = drawn(5000), drawn(5000, seed=1)
    assert distance_to_neighbour(one, other).item() == pytest.approx(1, abs=0.03)
    assert distance_to_neighbour(one, one).item() == 0
    assert distance_to_neighbour(one, -one).item() == pytest.approx(math.sqrt(2))


# spectra


@given(rows=st.integers(2, 20), columns=st.integers(2, 20), seed=st.integers(0, 50))
def test_singular_values_are_those_of_torch_and_lie_in_their_intervals(
    rows: int, columns: int, seed: int
) -> None:
    matrix = drawn(rows, columns, seed=seed)
    truth = torch.linalg.svdvals(matrix)
    spectrum = matrix_spectrum(matrix)
    assert spectrum.whole and spectrum.dimension == min(rows, columns)
    assert spectrum.values.tolist() == pytest.approx(truth.tolist(), abs=1e-6)
    for measure, exact in (
        (sigma_max, truth[0]),
        (sigma_min, truth[-1]),
        (condition, truth[0] / truth[-1]),
        (stable_rank, truth.square().sum() / truth[0] ** 2),
        (nuclear_norm, truth.sum()),
    ):
        found = measure(spectrum)
        assert found.low * (1 - 1e-9) <= exact.item() <= found.high * (1 + 1e-9), measure.__name__


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 20))
def test_ranks_and_condition_do_not_know_the_scale(scale: float, seed: int) -> None:
    matrix = drawn(30, 25, seed=seed)
    one, other = matrix_spectrum(matrix), matrix_spectrum(scale * matrix.T)
    for measure in (condition, stable_rank, effective_rank, tail_exponent):
        left, right = measure(one), measure(other)
        assert left.value == pytest.approx(right.value, rel=1e-6), measure.__name__


def test_closed_forms_of_planted_spectra() -> None:
    identity = matrix_spectrum(with_singular_values([2.0] * 12, 20, 12))
    for measure, value in (
        (condition, 1), (stable_rank, 12), (effective_rank, 12), (nuclear_norm, 24), (sigma_median, 2),
    ):  # fmt: skip
        assert measure(identity).value == pytest.approx(value, rel=1e-6)
    for planted, middle in (([9.0, 4.0, 1.0], 4.0), ([9.0, 4.0, 1.0, 0.5], 2.5)):
        found = sigma_median(matrix_spectrum(with_singular_values(planted, 8, len(planted))))
        assert found.value == pytest.approx(middle)
        assert found.low <= middle * (1 + 1e-12) and found.high >= middle * (1 - 1e-12)
    halves = matrix_spectrum(with_singular_values([0.5, 0.25, 0.25], 8, 3))
    assert effective_rank(halves).value == pytest.approx(2**1.5)  # entropy 1.5 bits
    assert stable_rank(halves).value == pytest.approx(1.5)


def test_what_rounding_cannot_tell_from_singular_has_no_upper_end() -> None:
    hidden = matrix_spectrum(with_singular_values([1.0, 1e-3, 1e-12], 6, 3))
    found = condition(hidden)
    assert found.high == math.inf and math.isfinite(found.value)
    assert (
        1e6 < found.low <= 1e12 and found.value == found.low
    )  # the quotient itself would be one of rounding
    smallest = sigma_min(hidden)
    assert smallest.low == 0.0 and smallest.high >= 1e-12
    clear = condition(matrix_spectrum(with_singular_values([1.0, 1e-4], 6, 2)))
    assert clear.value == pytest.approx(1e4, rel=1e-4) and clear.high < 1.01e4


def test_a_matrix_of_zeros_has_no_condition_and_no_rank() -> None:
    zero = matrix_spectrum(torch.zeros(30, 30))
    for measure in (condition, stable_rank, effective_rank, tail_exponent):
        assert math.isnan(measure(zero).value), measure.__name__
    assert sigma_max(zero).value == nuclear_norm(zero).value == 0


def test_a_sketched_spectrum_bounds_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_spectrum, "EXACT_DIMENSION", 100)
    values = np.geomspace(1.0, 1e-3, 200)
    matrix = with_singular_values(values, 250, 200)
    spectrum = matrix_spectrum(matrix)
    assert not spectrum.whole and spectrum.values.shape == (weight_spectrum.LEADING,)
    # Ritz values never exceed the singular values they stand for, and the first ones are as good as exact.
    assert all(found <= true * (1 + 1e-9) for found, true in zip(spectrum.values, values, strict=False))
    assert spectrum.values[:20] == pytest.approx(values[:20].tolist(), rel=1e-6)
    exact = {
        sigma_max: 1.0,
        stable_rank: float(np.sum(values**2)),
        nuclear_norm: float(np.sum(values)),
        condition: 1e3,
    }
    for measure, truth in exact.items():
        found = measure(spectrum)
        assert found.low * (1 - 1e-9) <= truth <= found.high * (1 + 1e-9), measure.__name__
    for measure in (sigma_min, sigma_median, effective_rank, tail_exponent):
        assert math.isnan(measure(spectrum).value), measure.__name__


def test_matrices_solved_together_have_the_values_that_each_has_alone() -> None:
    # One of zeros, one that has lost a direction to rounding, one with equal values, in one shape; and others.
    few = [
        torch.zeros(30, 25),
        drawn(30, 25),
        drawn(25, 30, seed=1),
        with_singular_values([1.0] * 25, 30, 25),
    ]
    few.append(with_singular_values([*np.geomspace(1, 1e-3, 24), 1e-12], 30, 25))
    matrices = [*few, drawn(40, 25, seed=3), drawn(7, 5)]
    measures = (
        condition,
        stable_rank,
        effective_rank,
        nuclear_norm,
        tail_exponent,
        sigma_min,
        sigma_median,
        sigma_max,
    )
    seen = []
    for places, spectra in matrix_spectra(matrices):
        for measure in measures:
            together = measure(spectra)
            for at, value, low, high in zip(places, together.value, together.low, together.high, strict=True):
                own = measure(matrix_spectrum(matrices[at]))
                expected = [float(own.value), float(own.low), float(own.high)]
                assert [value, low, high] == pytest.approx(expected, rel=1e-6, abs=1e-7, nan_ok=True), (
                    measure.__name__
                )
        seen += places
    assert sorted(seen) == list(range(len(matrices)))


@pytest.mark.parametrize("held", [1, 2000, 1 << 22])
def test_matrices_given_together_have_the_spectra_of_each(monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    monkeypatch.setattr(weight_spectrum, "_HELD_ENTRIES", held)
    given = [
        drawn(3, 12, 8),
        drawn(3, 8, 8, seed=1).bfloat16(),
        drawn(3, 8, 12, seed=2).float(),
        drawn(3, 5, 9),
    ]
    found = matrix_spectra(given)
    assert sorted((places, spectra.dimension) for places, spectra in found) == [([0, 1, 2], 8), ([3], 5)]
    for places, spectra in found:
        exact = torch.cat([torch.linalg.svdvals(given[at].double()) for at in places])
        assert spectra.values == pytest.approx(exact.numpy(), rel=1e-9)


@pytest.mark.parametrize("alpha", [2.0, 3.0, 4.5])
def test_the_tail_exponent_finds_a_planted_power_law(alpha: float) -> None:
    # Quantiles of a Pareto density ~ x^-alpha above 1.
    places = (np.arange(400) + 0.5) / 400
    eigenvalues = np.sort((1 - places) ** (-1 / (alpha - 1)))[::-1]
    squared = float(np.sum(eigenvalues))
    error = np.asarray(1e-12 * eigenvalues[0])
    spectrum = MatrixSpectra(np.sqrt(eigenvalues), np.asarray(squared), 400, error)
    found = tail_exponent(spectrum)
    assert found.value == pytest.approx(alpha, rel=0.05) and found.low < alpha < found.high


@pytest.mark.parametrize(("rows", "columns"), [(20, 20), (40, 30), (64, 64), (150, 130)])
def test_the_tail_that_fits_best_is_that_of_a_search_through_all_distances(rows: int, columns: int) -> None:
    matrices = [drawn(rows, columns, seed=seed) @ torch.diag(torch.linspace(0.1, 1, columns).double() ** seed)
                for seed in range(6)]  # fmt: skip
    ((_, spectra),) = matrix_spectra(matrices)
    found = tail_exponent(spectra)
    for at, values in enumerate(spectra.values):
        squares = values**2
        best, alphas = math.inf, math.nan
        for count in np.unique(np.geomspace(10, len(squares), 100).round().astype(int)):
            tail = squares[:count][::-1]
            alpha = 1 + count / np.log(tail / tail[0]).sum()
            law = 1 - (tail / tail[0]) ** (1 - alpha)
            steps = np.arange(count + 1) / count
            distance = max(np.abs(law - steps[1:]).max(), np.abs(law - steps[:-1]).max())
            if distance < best:
                best, alphas = distance, alpha
        assert found.value[at] == pytest.approx(alphas, rel=1e-5)


def test_a_random_matrix_has_a_lighter_tail_than_a_heavy_one() -> None:
    light = tail_exponent(matrix_spectrum(drawn(200, 100)))
    heavy = tail_exponent(matrix_spectrum(with_singular_values(np.arange(1, 101) ** -1.0, 200, 100)))
    assert light.value > 3 and heavy.value < 2.2


# changes


def test_changes_in_closed_form() -> None:
    change, earlier = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 10.0])
    assert update_norm(change).item() == 5
    assert update_ratio(change, earlier).item() == 0.5
    assert update_cosine(change, -2 * change).item() == pytest.approx(-1)
    assert update_cosine(change, torch.tensor([-4.0, 3.0])).item() == pytest.approx(0)
    assert moment_cosine(change, change).item() == pytest.approx(1)
    assert distance_from_first(earlier, torch.tensor([0.0, 4.0])).item() == 1.5
    assert math.isnan(update_cosine(change, torch.zeros(2)).item())


@given(heads=st.integers(1, 3), size=st.integers(1, 4), width=st.integers(2, 9), seed=st.integers(0, 30))
def test_increment_spectra_are_those_of_the_dense_forms(heads: int, size: int, width: int, seed: int) -> None:
    query, key, query_change, key_change = (drawn(heads, size, width, seed=seed + one) for one in range(4))
    second, third = increment_spectra(query, key, query_change, key_change)
    dense_second = query_change.mT @ key + query.mT @ key_change
    dense_third = query_change.mT @ key_change
    for found, dense in ((second, dense_second), (third, dense_third)):
        truth = torch.linalg.svdvals(dense)
        shared = min(found.shape[-1], truth.shape[-1])
        assert torch.allclose(found[:, :shared], truth[:, :shared], rtol=1e-6, atol=1e-6)
        assert bool((truth[:, shared:] < 1e-9).all())
    # Together they are the whole change of the form.
    whole = (query + query_change).mT @ (key + key_change) - query.mT @ key
    assert torch.allclose(dense_second + dense_third, whole)


@pytest.mark.parametrize(("of_queries", "of_keys"), [(1e-9, 1e-9), (1e-9, 1.0), (1e-3, 1e-12)])
def test_small_increments_keep_their_digits(of_queries: float, of_keys: float) -> None:
    query, key, query_change, key_change = (drawn(2, 4, 16, seed=one) for one in range(4))
    query_change, key_change = of_queries * query_change, of_keys * key_change
    second, third = increment_spectra(query, key, query_change, key_change)
    for found, dense in (
        (second, query_change.mT @ key + query.mT @ key_change), (third, query_change.mT @ key_change)
    ):  # fmt: skip
        truth = torch.linalg.svdvals(dense)[:, : found.shape[-1]]
        assert torch.allclose(found, truth, rtol=1e-5, atol=1e-6 * truth.max().item())


def test_heads_that_did_not_move_have_no_increment() -> None:
    query, key, still = drawn(2, 4, 16), drawn(2, 4, 16, seed=1), torch.zeros(2, 4, 16, dtype=torch.float64)
    for queries, keys in ((query, key), (still, still), (query, still)):
        second, third = increment_spectra(queries, keys, still, still)
        assert second.abs().max() == third.abs().max() == 0
        assert (
            second_order_stable_rank(second).isnan().all() and third_order_effective_rank(third).isnan().all()
        )


def test_a_planted_rank_one_increment_has_rank_one() -> None:
    query, key = drawn(2, 4, 16), drawn(2, 4, 16, seed=1)
    # Head 0: one direction only, in the queries alone. Head 1: everything moves.
    query_change = drawn(2, 4, 16, seed=2)
    query_change[0] = torch.outer(drawn(4, seed=3), drawn(16, seed=4))
    key_change = drawn(2, 4, 16, seed=5)
    key_change[0] = 0
    second, third = increment_spectra(query, key, query_change, key_change)
    assert second_order_stable_rank(second)[0].item() == pytest.approx(1)
    assert second_order_effective_rank(second)[0].item() == pytest.approx(1)
    assert second_order_stable_rank(second)[1] > 2 and second_order_effective_rank(second)[1] > 4
    dense = query_change[0].T @ key[0]
    assert second_order_norm(second)[0].item() == pytest.approx(dense.norm().item())
    assert third_order_norm(third)[0].item() == pytest.approx(0, abs=1e-12)
    assert third_order_norm(third)[1].item() == pytest.approx(
        (query_change[1].T @ key_change[1]).norm().item()
    )
    assert 1 <= third_order_stable_rank(third)[1] <= third_order_effective_rank(third)[1] <= 4 + 1e-9


def test_ranks_of_planted_singular_values() -> None:
    # Orthonormal rows U and V: the singular values of (diag(a) U)' V are a. Shares of the squares 1/2, 1/4, 1/8, 1/8.
    left, right = (torch.linalg.qr(drawn(16, 4, seed=seed)).Q.T for seed in (0, 1))
    scaled = torch.tensor([2.0, 2**0.5, 1.0, 1.0], dtype=torch.float64)[:, None] * left
    zero = torch.zeros(1, 4, 16, dtype=torch.float64)
    second, third = increment_spectra(zero, right[None], scaled[None], right[None])
    for spectrum, norm, stable, effective in (
        (second, second_order_norm, second_order_stable_rank, second_order_effective_rank),
        (third, third_order_norm, third_order_stable_rank, third_order_effective_rank),
    ):
        assert norm(spectrum).item() == pytest.approx(8**0.5)
        assert stable(spectrum).item() == pytest.approx(2)
        assert effective(spectrum).item() == pytest.approx(2**1.75)
