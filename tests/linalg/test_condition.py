"""Condition numbers: closed forms, and what structural null directions do to them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hnf_offline.linalg import condition
from hnf_offline.linalg.jacobian import token_jacobians


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def singular_values_of(function: nn.Module, width: int) -> Tensor:
    points = torch.randn(4, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.svdvals(token_jacobians(function, points))


def test_plain_condition_number() -> None:
    assert float(condition.condition_number(values(8.0, 4.0, 2.0))) == 4.0
    assert float(condition.condition_number(values(8.0, 0.0))) == math.inf
    assert math.isnan(float(condition.condition_number(values(0.0, 0.0))))


@pytest.mark.parametrize("width", [3, 16, 64])
def test_deflated_norms_have_condition_one_and_plain_ones_have_none_worth_the_name(width: int) -> None:
    for norm, nullity in (
        (nn.LayerNorm(width, eps=0.0, elementwise_affine=False), condition.LAYER_NORM_NULLITY),
        (nn.RMSNorm(width, eps=0.0, elementwise_affine=False), condition.RMS_NORM_NULLITY),
    ):
        found = singular_values_of(norm, width)
        deflated = condition.deflated_condition_number(found, nullity)
        assert torch.allclose(deflated, torch.ones_like(deflated), atol=1e-6)
        assert (condition.condition_number(found) > 1e6).all()


def test_a_norm_with_gain_has_at_most_the_gains_condition() -> None:
    norm = nn.LayerNorm(16, eps=0.0, bias=False).double()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(1, 4, 16))
    deflated = condition.deflated_condition_number(singular_values_of(norm, 16), 2)
    assert (deflated > 1.5).all()
    assert (deflated <= 4.0 + 1e-9).all()


def test_deflated_softmax_of_equal_probabilities_has_condition_one_and_grows_with_saturation() -> None:
    logits = torch.zeros(2, 6, dtype=torch.float64)
    logits[1, 0] = 5.0
    jacobians = token_jacobians(lambda rows: rows.softmax(dim=-1), logits)
    flat, saturated = condition.deflated_condition_number(
        torch.linalg.svdvals(jacobians), condition.SOFTMAX_NULLITY
    )
    assert float(flat) == pytest.approx(1.0, abs=1e-9)
    # The other probabilities q are equal: eigenvalues q (4 times) and n q p_0 of diag(p) - pp'.
    assert float(saturated) == pytest.approx(6 * math.exp(5) / (math.exp(5) + 5), rel=1e-9)


def test_a_nullity_that_leaves_nothing_is_refused() -> None:
    for nullity in (-1, 2, 3):
        with pytest.raises(ValueError, match="leave nothing"):
            condition.smallest_on_range(values(1.0, 0.5), nullity)


def test_effective_condition_number_counts_what_is_above_the_threshold() -> None:
    spectrum = values(100.0, 10.0, 1.0, 1e-9)
    assert float(condition.effective_condition_number(spectrum, 1e-6)) == 100.0
    assert float(condition.effective_condition_number(spectrum, 0.05)) == 10.0
    assert math.isnan(float(condition.effective_condition_number(values(0.0, 0.0), 1e-6)))
    assert condition.numerical_rank(spectrum, 1e-6).item() == 3
    assert condition.numerical_rank(values(0.0, 0.0), 1e-6).item() == 0


def test_rounding_threshold_separates_a_rank_from_its_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(40, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    spectrum = torch.linalg.svdvals(left @ right.T)
    tau = condition.rounding_threshold(40, 40, torch.float64)
    assert condition.numerical_rank(spectrum, tau).item() == 7


def test_stable_rank_and_largest_over_rms_of_closed_forms() -> None:
    isometry, rank_one = values(3.0, 3.0, 3.0, 3.0), values(5.0, 0.0, 0.0, 0.0)
    for spectrum, rank, ratio in ((isometry, 4.0, 1.0), (rank_one, 1.0, 2.0)):
        assert float(condition.stable_rank(spectrum)) == pytest.approx(rank)
        frobenius = torch.linalg.vector_norm(spectrum)
        assert float(condition.largest_over_rms(spectrum[0], frobenius, 4)) == pytest.approx(ratio)
    assert float(condition.stable_rank(values(1e200, 1e200))) == pytest.approx(2.0)


def test_log_spread_is_zero_for_isometries_and_ignores_structural_nulls() -> None:
    assert float(condition.log_spread(values(2.0, 2.0, 2.0), 0)) == 0.0
    assert float(condition.log_spread(values(math.e, 1.0, 1e-17), 1)) == pytest.approx(0.5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=8), st.floats(1e-6, 1e6))
def test_scaling_a_map_changes_none_of_them(numbers: list[float], factor: float) -> None:
    spectrum = values(*sorted(numbers, reverse=True))
    for function in (
        condition.condition_number,
        condition.stable_rank,
        lambda s: condition.effective_condition_number(s, 1e-12),
        lambda s: condition.log_spread(s, 0),
        lambda s: condition.deflated_condition_number(s, 1),
    ):
        assert float(function(factor * spectrum)) == pytest.approx(
            float(function(spectrum)), rel=1e-8, abs=1e-8
        )
