"""Predictiveness and effective dimension against what is planted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnf_offline.quantities.gradient_course import (
    effective_dimension,
    first_component_share,
    leading_share,
    predictiveness,
    predictiveness_curved,
    three_component_share,
)


def gram(vectors: np.ndarray) -> np.ndarray:
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return units @ units.T


def test_a_prediction_that_is_right_has_one_and_the_mean_has_zero() -> None:
    changes = np.array([-0.3, -0.1, 0.2, -0.5])
    for formula in (predictiveness, predictiveness_curved):
        assert formula(changes, changes) == 1.0
        assert formula(np.full(4, changes.mean()), changes) == pytest.approx(0.0)
        assert formula(-changes, changes) < 0
        assert np.isnan(formula(changes, np.zeros(4)))


def test_a_constant_error_is_not_forgiven() -> None:
    changes = np.array([-0.3, -0.1, 0.2, -0.5])
    shifted = predictiveness(changes + 0.5, changes)
    assert shifted == pytest.approx(1 - 4 * 0.25 / ((changes - changes.mean()) ** 2).sum())


def test_planted_noise_is_its_share_of_the_variance() -> None:
    generator = np.random.default_rng(0)
    predicted = generator.normal(size=20_000)
    measured = predicted + 0.5 * generator.normal(size=20_000)
    assert predictiveness(predicted, measured) == pytest.approx(1 - 0.25 / 1.25, abs=0.01)


@pytest.mark.parametrize("directions", [1, 2, 5])
def test_gradients_in_a_few_orthogonal_directions_have_as_many_dimensions(directions: int) -> None:
    axes = np.eye(40)[:directions]
    vectors = np.concatenate([
        axes * scale for scale in (1.0, -30.0)
    ])  # either way along a line, and of any length
    assert effective_dimension(gram(vectors)) == pytest.approx(directions)
    assert first_component_share(gram(vectors)) == pytest.approx(1 / directions)
    assert three_component_share(gram(vectors)) == pytest.approx(min(1.0, 3 / directions))


def test_unequal_directions_count_by_what_they_hold() -> None:
    vectors = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert effective_dimension(gram(vectors)) == pytest.approx(16 / 10)  # eigenvalues 3 and 1
    assert first_component_share(gram(vectors)) == pytest.approx(3 / 4)


def test_unrelated_gradients_of_a_large_model_fill_the_window() -> None:
    vectors = np.random.default_rng(0).normal(size=(8, 20_000))
    assert effective_dimension(gram(vectors)) == pytest.approx(8, abs=0.05)
    assert three_component_share(gram(vectors)) == pytest.approx(3 / 8, abs=0.02)


@given(st.integers(2, 8), st.integers(1, 12), st.integers(0, 1000))
def test_both_lie_between_their_bounds(count: int, width: int, seed: int) -> None:
    matrix = gram(np.random.default_rng(seed).normal(size=(count, width)))
    dimension, share = effective_dimension(matrix), leading_share(matrix, 1)
    assert 1 - 1e-9 <= dimension <= min(count, width) + 1e-9
    assert 1 / dimension - 1e-9 <= share <= 1 + 1e-9, "the largest eigenvalue is at least their weighted mean"
