"""Ratios, fits and noise of gradients, where the answer is known or planted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hnf_offline.quantities.gradient_noise import (
    GradientNoise,
    critical_batch,
    noise_scale,
    squared_mean_gradient,
    variance_trace,
)
from hnf_offline.quantities.gradients import (
    effective_learning_rate,
    gradient_check_error,
    gradient_depth_factor,
    gradient_ema_ratio,
    gradient_flow_ratio,
    momentum_cosine,
    next_update_ratio,
    slope_of,
)


def test_ratios_and_cosines_in_closed_form() -> None:
    gradient = torch.tensor([3.0, 4.0])
    assert gradient_ema_ratio(gradient, torch.tensor([9.0, 16.0])).item() == 1
    assert gradient_ema_ratio(gradient, torch.tensor([1.0, 0.0])).item() == 5
    assert momentum_cosine(gradient, -7 * gradient).item() == pytest.approx(-1)
    assert momentum_cosine(gradient, torch.tensor([4.0, -3.0])).item() == pytest.approx(0)
    assert gradient_flow_ratio(gradient, torch.tensor([0.0, 10.0])).item() == 0.5
    # Plain gradient descent: the effective rate is the rate.
    assert effective_learning_rate(0.25 * gradient, gradient).item() == 0.25
    assert next_update_ratio(torch.tensor([0.0, 1.0]), torch.tensor([6.0, 8.0])).item() == pytest.approx(0.1)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_a_planted_depth_factor_is_found_exactly(factor: float) -> None:
    norms = 3.0 * factor ** -np.arange(6.0)
    assert gradient_depth_factor(norms) == pytest.approx((factor, factor, factor))


def test_the_depth_factors_interval_covers_the_truth_nineteen_times_in_twenty() -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        norms = np.exp(-np.log(1.3) * np.arange(8) + 0.4 * generator.standard_normal(8))
        _, low, high = gradient_depth_factor(norms)
        inside += low <= 1.3 <= high
    assert 0.92 <= inside / 400 <= 0.98


def test_the_slope_is_that_of_polyfit() -> None:
    values = np.random.default_rng(1).standard_normal(9)
    assert slope_of(values)[0] == pytest.approx(np.polyfit(np.arange(9.0), values, 1)[0])


def test_the_gradient_check_is_the_source_documents_relative_error() -> None:
    one, other = np.array([1.0, -2.0, 0.0]), np.array([1.0, -2.2, 0.0])
    assert gradient_check_error(one, other) == pytest.approx(0.2 / 4.2)
    assert gradient_check_error(one, -one) == 1
    assert gradient_check_error(one, one) == 0


# noise


def planted(
    generator: np.random.Generator, mean: np.ndarray, spread: np.ndarray, rows: int, groups: int = 4
) -> GradientNoise:
    """Gradients of single sequences ~ N(mean, diag(spread^2)); groups from the first half of the rows."""
    each = mean + spread * generator.standard_normal((rows, mean.size))
    whole = each.mean(axis=0)
    size = rows // 2 // groups
    parts = [each[at * size : (at + 1) * size].mean(axis=0) - whole for at in range(groups)]
    return GradientNoise(
        np.full(groups, float(size)),
        float(rows),
        np.array([part @ part for part in parts]),
        np.array([part @ whole for part in parts]),
        float(whole @ whole),
        127.0,
    )


def test_both_estimates_are_unbiased() -> None:
    generator = np.random.default_rng(0)
    mean, spread = np.full(50, 0.1), np.linspace(0.2, 1.0, 50)
    drawn = [planted(generator, mean, spread, 16) for _ in range(3000)]
    for measure, truth in ((variance_trace, np.sum(spread**2)), (squared_mean_gradient, np.sum(mean**2))):
        found = np.array([measure(one)[0] for one in drawn])
        assert abs(found.mean() - truth) < 4 * found.std() / math.sqrt(len(drawn)), measure.__name__
        # The squared norm of the mean gradient itself is not: noise adds tr(Sigma) / N.
    naive = np.mean([one.squared_norm for one in drawn])
    assert naive == pytest.approx(np.sum(mean**2) + np.sum(spread**2) / 16, rel=0.05)


def test_a_noise_scale_by_hand() -> None:
    # Two groups of 2 of 8 sequences: 1/2 - 1/8 = 3/8. tr(Sigma) = 3 / (3/8) = 8, |G|^2 = 5 - 8/8 = 4.
    even = GradientNoise(
        np.array([2.0, 2.0]), 8.0, np.array([3.0, 3.0]), np.array([0.3, -0.3]), 5.0, tokens_per_sequence=16.0
    )
    assert variance_trace(even) == pytest.approx((8, 8, 8))
    # G' Sigma G = .09 / (3/8); twice the root of its eighth, times Student's t of one degree of freedom.
    reach = 12.71 * 2 * math.sqrt(0.09 / (3 / 8) / 8)
    assert squared_mean_gradient(even) == pytest.approx((4, 4 - reach, 4 + reach))
    assert noise_scale(even) == pytest.approx((2, 8 / (4 + reach), math.inf))
    assert critical_batch(even) == pytest.approx((32, 16 * 8 / (4 + reach), math.inf))


@pytest.mark.parametrize(("size", "truth"), [(0.3, 20 / 9.0), (0.1, 20.0)])
def test_a_planted_noise_scale_lies_in_its_interval(size: float, truth: float) -> None:
    generator = np.random.default_rng(1)
    mean = np.full(100, size)  # |G|^2 = 100 size^2, tr(Sigma) = 20
    spread = np.full(100, math.sqrt(0.2))
    inside = 0
    for _ in range(300):
        noise = planted(generator, mean, spread, 64)
        value, low, high = noise_scale(noise)
        assert low <= value <= high
        inside += low <= truth <= high
        assert critical_batch(noise)[0] == pytest.approx(127 * value)
    assert inside / 300 >= 0.93


def test_where_noise_is_all_there_is_only_a_lower_end_is_told() -> None:
    generator = np.random.default_rng(2)
    found = [noise_scale(planted(generator, np.zeros(100), np.ones(100), 16)) for _ in range(50)]
    assert all(math.isfinite(value) and value >= 0 for value, _, _ in found)
    assert sum(high == math.inf for _, _, high in found) > 40
