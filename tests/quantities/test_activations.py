"""Activations and the similarity of blocks, where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hnf_offline.quantities.activations import (
    activation_largest,
    activation_mean,
    activation_smallest,
    activation_variance,
    dead_share,
    overflow_bf16,
    overflow_fp16,
    positive_share,
    saturated_share,
    underflow_bf16,
    underflow_fp16,
    zero_share,
)
from hnf_offline.quantities.observed import Observed
from hnf_offline.quantities.residual import residual_growth, token_spread
from hnf_offline.quantities.similarity import (
    linear_cka,
    nearest_neighbour_information,
    principal_information,
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_moments_and_range_of_a_few_numbers() -> None:
    activation = torch.tensor([[[1.0, 3.0], [5.0, 7.0]], [[0.0, 0.0], [0.0, -8.0]]])
    assert activation_mean(activation).item() == 1
    # within the sequences 5 and 12
    assert activation_variance(activation).item() == pytest.approx((5 + 12) / 2)
    assert activation_smallest(activation).item() == -8
    assert activation_largest(activation).item() == 7
    assert activation_variance(activation[0]).item() == pytest.approx(5)


@given(
    limits=st.lists(
        st.tuples(st.booleans(), st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, math.inf])), max_size=12
    ),
    values=st.lists(st.sampled_from([0.0, 0.5, -1.0, 2.5, -3.0, math.inf, math.nan]), min_size=1, max_size=6),
)
def test_shares_beyond_limits_do_not_depend_on_what_was_asked_before(
    limits: list[tuple[bool, float]], values: list[float]
) -> None:
    magnitudes = Observed(torch.tensor(values))
    for least, limit in limits:
        found = magnitudes.at_least(limit) if least else magnitudes.at_most(limit)
        exact = sum(abs(value) >= limit if least else abs(value) <= limit for value in values) / len(values)
        assert found.item() == pytest.approx(exact)


@pytest.mark.parametrize("mean", [0.0, 1.0, 30.0, 3000.0, -1e6])
def test_the_variance_does_not_lose_its_digits_to_the_mean(mean: float) -> None:
    activation = (mean + drawn(3, 50, 40)).float()
    exact = activation.double().flatten(1).var(dim=1, correction=0).mean().item()
    assert activation_variance(activation).item() == pytest.approx(exact, rel=1e-4)


def test_what_half_precisions_cannot_hold() -> None:
    # 65519 still rounds to 65504 in float16, 65520 does not; 2^-25 rounds to 0, a little more to 2^-24.
    fp16 = Observed(torch.tensor([65519.0, 65520.0, -1e6, math.inf, 0.0, 2.0**-25, 2.0**-25 * 1.01, 1.0]))
    assert overflow_fp16(fp16).item() == 2 / 8
    assert underflow_fp16(fp16).item() == 1 / 8
    bf16 = Observed(torch.tensor([3.38e38, 3.4e38, 2.0**-134, 2.0**-133, 0.0]))
    assert overflow_bf16(bf16).item() == pytest.approx(1 / 5)
    assert underflow_bf16(bf16).item() == pytest.approx(1 / 5)


def test_units_that_are_on_off_or_saturated() -> None:
    preactivation = torch.tensor([[[1.0, -1.0, -2.0], [-3.0, -1.0, 4.0]]])
    assert positive_share(preactivation).item() == pytest.approx(2 / 6)
    assert zero_share(preactivation.relu()).item() == pytest.approx(4 / 6)
    assert dead_share(preactivation.flatten(0, -2).amax(dim=0)).item() == pytest.approx(1 / 3)
    assert saturated_share(torch.tensor([2.0, 3.0, -3.0, 0.0]).tanh()).item() == 0.5  # tanh 2 = 0.964


def test_a_block_that_doubles_its_input_has_growth_two() -> None:
    before = drawn(3, 5, 4)
    assert residual_growth(before, 2 * before).item() == pytest.approx(2)


def test_tokens_that_are_the_same_have_no_spread() -> None:
    differing, same = [[3.0, 4.0], [3.0, -4.0]], [[1.0, 2.0], [1.0, 2.0]]
    assert token_spread(torch.tensor([differing])).item() == pytest.approx(4 / 5)
    assert token_spread(torch.tensor([differing, same])).item() == pytest.approx(4 / 5 / 2)
    assert token_spread(torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])).item() == 1
    assert math.isnan(token_spread(torch.zeros(1, 3, 2)).item())
    assert math.isnan(token_spread(torch.tensor([[[math.nan, 1.0], [0.0, 1.0]]])).item())


@pytest.mark.parametrize("apart", [1.0, 0.1, 1e-3, 1e-5])
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_the_spread_of_tokens_is_exact_however_small_it_is(apart: float, scale: float) -> None:
    stream = (scale * (drawn(3, 1, 40) + apart * drawn(3, 50, 40, seed=1))).float()
    wide = stream.double()
    exact = (
        torch.linalg.matrix_norm(wide - wide.mean(dim=1, keepdim=True)) / torch.linalg.matrix_norm(wide)
    ).mean()
    assert token_spread(stream).item() == pytest.approx(exact.item(), rel=1e-3)


# similarity


@given(seed=st.integers(0, 30), scale=st.floats(0.01, 100))
def test_cka_knows_neither_rotation_nor_scale_nor_shift(seed: int, scale: float) -> None:
    stream, other = drawn(2, 40, 6, seed=seed), drawn(2, 40, 6, seed=seed + 1)
    rotation = torch.linalg.qr(drawn(6, 6, seed=seed + 2)).Q
    assert linear_cka(stream, scale * stream @ rotation + 3.0).item() == pytest.approx(1)
    mixed = stream + other
    assert linear_cka(mixed, stream).item() == pytest.approx(
        linear_cka(stream, scale * mixed @ rotation).item()
    )


def test_cka_of_independent_streams_is_zero_however_wide_they_are() -> None:
    # The biased estimate is about width / (width + tokens) = 0.89 here.
    left, right = drawn(20, 64, 512), drawn(20, 64, 512, seed=1)
    assert abs(linear_cka(left, right).item()) < 0.05
    kernels = [one[0] - one[0].mean(dim=0) for one in (left, right)]
    biased = (kernels[0].T @ kernels[1]).norm() ** 2 / (
        (kernels[0].T @ kernels[0]).norm() * (kernels[1].T @ kernels[1]).norm()
    )
    assert biased > 0.8


def test_unbiased_cka_equals_the_sum_over_quadruples() -> None:
    # HSIC_1 is the U-statistic: an average over quadruples of different tokens (Song et al. 2012, theorem 4).
    from itertools import permutations

    left, right = drawn(1, 6, 3), drawn(1, 6, 2, seed=1)
    kernels = [one[0] @ one[0].T for one in (left, right)]

    def hsic(k: Tensor, m: Tensor) -> float:
        terms = [
            (k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])).item() for i, j, q, r in permutations(range(6), 4)
        ]
        return sum(terms) / len(terms)

    expected = hsic(*kernels) / math.sqrt(hsic(kernels[0], kernels[0]) * hsic(kernels[1], kernels[1]))
    assert linear_cka(left, right).item() == pytest.approx(expected)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_information_of_gaussians_is_the_closed_form(correlation: float) -> None:
    x, noise = drawn(40, 512), drawn(40, 512, seed=1)
    y = correlation * x + math.sqrt(1 - correlation**2) * noise
    found = nearest_neighbour_information(x, y)
    truth = -0.5 * math.log(1 - correlation**2)
    error = found.std().item() / math.sqrt(40)
    assert found.mean().item() == pytest.approx(truth, abs=max(4 * error, 0.02))
    # The information does not change with the units of one of the two; the estimate does within its error.
    assert nearest_neighbour_information(5 * x, y).mean().item() == pytest.approx(
        truth, abs=max(4 * error, 0.03)
    )


def test_information_finds_the_component_that_two_blocks_share() -> None:
    signal, small = drawn(4, 300, 1), 0.1 * drawn(4, 300, 8, seed=1)
    stream = 10 * signal * drawn(8, seed=2) + small
    same = 10 * signal * drawn(8, seed=3) + 0.1 * drawn(4, 300, 8, seed=4)
    other = 10 * drawn(4, 300, 1, seed=5) * drawn(8, seed=3) + small
    assert principal_information(stream, same).item() > 2
    assert abs(principal_information(stream, other).item()) < 0.15
    assert math.isnan(principal_information(stream[:, :4], same[:, :4]).item())
