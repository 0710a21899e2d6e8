"""Numbers at the ends of a float32's range, zeros, one element, NaN and half precision: the formula's value or NaN."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hnf_offline.linalg.vectors import cosine, inner, length
from hnf_offline.quantities.activations import activation_variance
from hnf_offline.quantities.attention import attention_entropy, attention_rows, attention_saturation
from hnf_offline.quantities.gradients import (
    effective_learning_rate,
    gradient_ema_ratio,
    gradient_flow_ratio,
    gradient_norm,
    momentum_cosine,
    next_update_ratio,
)
from hnf_offline.quantities.hessian import gradient_direction, update_direction
from hnf_offline.quantities.optimizer import adam_lag_rms
from hnf_offline.quantities.precision import output_error_bf16, output_error_fp16
from hnf_offline.quantities.residual import residual_growth, residual_rms
from hnf_offline.quantities.similarity import linear_cka, principal_information
from hnf_offline.quantities.weight_changes import (
    distance_from_first,
    moment_cosine,
    update_cosine,
    update_norm,
    update_ratio,
)
from hnf_offline.quantities.weights import distance_to_neighbour, weight_deviation, weight_excess_kurtosis

#: Factors within a float32's range whose squares are not.
FACTORS = st.sampled_from([1e-36, 1e-30, 1e-22, 1e-12, 1.0, 1e12, 1e20, 1e30, 1e36])
SEEDS = st.integers(0, 50)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mean_square_of_itself(gradient: Tensor) -> Tensor:
    return gradient.double().square()  # what Adam keeps of it, were there no underflow


#: Quantities of two vectors that do not change when both are multiplied with one number.
RATIOS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    momentum_cosine,
    gradient_flow_ratio,
    effective_learning_rate,
    next_update_ratio,
    update_ratio,
    update_cosine,
    moment_cosine,
    distance_from_first,
    distance_to_neighbour,
    output_error_bf16,
    output_error_fp16,
)
#: Quantities of one vector that grow with it.
SIZES: tuple[Callable[[Tensor], Tensor], ...] = (gradient_norm, update_norm, weight_deviation)


@given(seed=SEEDS, factor=FACTORS)
@pytest.mark.parametrize("measure", RATIOS, ids=lambda one: one.__name__)
def test_ratios_do_not_know_the_scale(
    measure: Callable[[Tensor, Tensor], Tensor], seed: int, factor: float
) -> None:
    one, other = drawn(40, seed=seed), drawn(40, seed=seed + 1)
    expected = measure(one.double(), other.double()).item()
    assert measure(factor * one, factor * other).item() == pytest.approx(expected, rel=1e-4)


@given(seed=SEEDS, factor=FACTORS)
@pytest.mark.parametrize("measure", SIZES, ids=lambda one: one.__name__)
def test_sizes_are_those_of_float64(measure: Callable[[Tensor], Tensor], seed: int, factor: float) -> None:
    vector = factor * drawn(40, seed=seed)
    assert measure(vector).item() == pytest.approx(measure(vector.double()).item(), rel=1e-5)
    assert measure(vector).item() == pytest.approx(factor * measure(drawn(40, seed=seed)).item(), rel=1e-4)


@given(seed=SEEDS, factor=FACTORS)
def test_a_gradient_beside_the_moment_that_is_its_own_square(seed: int, factor: float) -> None:
    gradient = factor * drawn(40, seed=seed)
    second_moment = mean_square_of_itself(gradient)
    assert gradient_ema_ratio(gradient, second_moment).item() == pytest.approx(1, rel=1e-5)
    assert adam_lag_rms(gradient, second_moment, torch.zeros(()).double()).item() == pytest.approx(
        1, rel=1e-5
    )


def test_a_lag_of_a_small_epsilon_does_not_divide_by_its_square() -> None:
    # 1e-30 squared is 0 as float32.
    gradient, nothing = torch.full((4,), 2e-30), torch.zeros(4)
    assert adam_lag_rms(gradient, nothing, torch.tensor(1e-30)).item() == pytest.approx(2.0)


@given(seed=SEEDS, factor=FACTORS)
def test_curvature_along_a_gradient_of_any_length(seed: int, factor: float) -> None:
    gradient, metric = drawn(6, seed=seed), drawn(6, seed=seed + 1).abs() + 0.1
    curved = drawn(6, 6, seed=seed + 2) @ gradient
    for along in (gradient_direction, update_direction):
        expected = along(gradient.double(), curved.double(), metric.double()).item()
        found = along(factor * gradient, factor * curved, metric).item()
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


@settings(deadline=None)
@given(seed=SEEDS, factor=FACTORS)
def test_streams_that_explode_or_vanish(seed: int, factor: float) -> None:
    before, after = drawn(2, 12, 5, seed=seed), 3 * drawn(2, 12, 5, seed=seed + 1)
    assert residual_growth(factor * before, factor * after).item() == pytest.approx(
        residual_growth(before.double(), after.double()).item(), rel=1e-5
    )
    for measure, power in ((residual_rms, 1), (activation_variance, 2)):
        expected = factor**power * measure(before.double()).item()
        assert measure(factor * before).item() == pytest.approx(expected, rel=1e-4)
    for measure in (linear_cka, principal_information):
        expected = measure(before.double(), after.double()).item()
        assert measure(factor * before, factor * after).item() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def kurtosis_of(weight: Tensor) -> Tensor:
    return weight_excess_kurtosis(weight, weight.sort(dim=-1).values)


@given(seed=SEEDS, factor=FACTORS)
def test_kurtosis_does_not_know_the_scale(seed: int, factor: float) -> None:
    weight = drawn(200, seed=seed)
    expected = kurtosis_of(weight.double()).item()
    assert kurtosis_of(factor * weight).item() == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert kurtosis_of(factor * weight[torch.randperm(200)]).item() == pytest.approx(
        expected, rel=1e-3, abs=1e-4
    )


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e-3, -3e7])
@pytest.mark.parametrize("count", [1, 3, 768, 1000])
def test_equal_weights_have_no_kurtosis_whatever_their_mean_rounds_to(value: float, count: int) -> None:
    assert math.isnan(kurtosis_of(torch.full((count,), value)).item())
    both = torch.stack([torch.full((count,), value), torch.linspace(0, 1, count)])
    kurtosis = kurtosis_of(both)
    assert kurtosis.isnan().tolist() == [True, count == 1]


def test_what_is_zero_has_no_direction_and_no_ratio() -> None:
    zero, one = torch.zeros(5), torch.ones(5)
    for measure in (momentum_cosine, update_cosine, moment_cosine):
        assert math.isnan(measure(zero, one).item()) and math.isnan(measure(one, zero).item())
    assert gradient_norm(zero).item() == update_norm(zero).item() == 0
    assert gradient_flow_ratio(zero, one).item() == 0 and gradient_flow_ratio(one, zero).item() == math.inf
    assert math.isnan(residual_growth(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2)).item())


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_not_finite_stays_so(broken: float) -> None:
    vector = torch.tensor([1.0, broken, 2.0])
    assert not math.isfinite(gradient_norm(vector).item())
    assert not math.isfinite(residual_rms(vector[None, None]).item())
    assert math.isnan(kurtosis_of(vector).item())
    assert math.isnan(momentum_cosine(vector, torch.ones(3)).item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_before_it_is_squared(dtype: torch.dtype) -> None:
    vector = torch.full((4, 100), 300.0, dtype=dtype)  # 300 squared is beyond float16
    assert gradient_norm(vector[0]).item() == pytest.approx(3000)
    assert length(vector).tolist() == pytest.approx([3000] * 4)
    assert update_norm(vector).tolist() == pytest.approx([3000] * 4)
    assert momentum_cosine(vector[0], vector[0]).item() == pytest.approx(1)


@given(seed=SEEDS, rows=st.integers(1, 3), count=st.integers(0, 300))
def test_lengths_and_products_are_those_of_float64(seed: int, rows: int, count: int) -> None:
    wide = drawn(rows, max(1, 2 * count), seed=seed)
    for one in (drawn(rows, count, seed=seed), wide[:, ::2][:, :count], wide.T[:count].T):
        other = drawn(rows, count, seed=seed + 1)
        exact = (one.double() * other.double()).sum(dim=-1)
        norms, others = (each.double().square().sum(dim=-1).sqrt() for each in (one, other))
        apart = (inner(one, other) - exact).abs() / (norms * others).clamp_min(1e-30)
        assert apart.max().item() < 1e-6
        assert length(one).tolist() == pytest.approx(norms.tolist(), rel=1e-6)


def test_long_vectors_are_summed_to_their_end() -> None:
    # Several stretches of a product, and a last one that is not whole.
    one, other = torch.full((300_001,), 2.0), torch.full((300_001,), 3.0)
    assert inner(one, other).item() == 6 * 300_001
    assert length(one).item() == pytest.approx(2 * math.sqrt(300_001), rel=1e-7)
    # A few entries of another size, and one that no float32 can square, at the end.
    many = drawn(1_000_003)
    many[-3:] = torch.tensor([1e4, -1e4, 3e3])
    for scale, last in ((1.0, 5.0), (1e-20, 5.0), (1.0, 1e25)):
        vector = scale * many
        vector[-1] = last
        assert length(vector).item() == pytest.approx(vector.double().norm().item(), rel=1e-6)
        assert inner(vector, vector).item() == pytest.approx(vector.double().square().sum().item(), rel=1e-6)
    assert cosine(one, other).item() == pytest.approx(1) and cosine(one, -other).item() >= -1


@given(seed=SEEDS)
def test_a_rotation_changes_no_length_and_no_angle(seed: int) -> None:
    turn = torch.linalg.qr(drawn(7, 7, seed=seed).double()).Q
    one, other = drawn(7, seed=seed + 1).double(), drawn(7, seed=seed + 2).double()
    assert gradient_norm(turn @ one).item() == pytest.approx(gradient_norm(one).item())
    assert momentum_cosine(turn @ one, turn @ other).item() == pytest.approx(
        momentum_cosine(one, other).item()
    )


# attention


def test_scores_that_are_not_numbers_are_no_calm_head() -> None:
    scores = torch.zeros(1, 2, 3, 4)
    scores[0, 1, 2, 3] = math.nan
    rows = attention_rows(scores)
    for measure in (attention_entropy, attention_saturation):
        calm, broken = measure(rows).tolist()
        assert math.isfinite(calm) and math.isnan(broken)


def test_one_token_one_head_and_nothing_but_masks() -> None:
    rows = attention_rows(torch.zeros(1, 1, 1, 1))
    assert attention_entropy(rows).tolist() == [0] and attention_saturation(rows).tolist() == [0]
    blind = attention_rows(torch.full((1, 1, 2, 3), -math.inf))
    assert math.isnan(attention_entropy(blind).item()) and attention_saturation(blind).item() == 0
    huge = attention_rows(torch.tensor([[[[3e29, -3e29, 0.0]]]]))
    assert attention_entropy(huge).item() == 0 and attention_saturation(huge).item() == 1
