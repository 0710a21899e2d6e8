"""The formulas of the family `update` on numbers for which the answer is known on paper."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hnf_offline.linalg.line_search import FirstRise
from hnf_offline.quantities.update import (
    critical_learning_rate,
    critical_multiple,
    ghost_ratio,
    ghost_ratio_99,
    logged_change,
    measured_change,
    predicted_change,
)


def test_a_ghost_ratio_of_one_is_a_logit_difference_of_pi() -> None:
    assert ghost_ratio(torch.tensor([0.1, math.pi, 1.0])).item() == pytest.approx(1.0)


def test_the_quantile_leaves_one_token_in_a_hundred_out() -> None:
    span = torch.arange(1.0, 201.0)
    assert ghost_ratio_99(span).item() == pytest.approx(198 / math.pi)
    assert ghost_ratio_99(span[:99]).item() == ghost_ratio(span[:99]).item()
    assert ghost_ratio_99(span[:1]).item() == pytest.approx(1 / math.pi)


@given(length=st.floats(0.1, 10), slope=st.floats(-5, 5), curvature=st.floats(-5, 5))
def test_the_prediction_is_the_parabola(length: float, slope: float, curvature: float) -> None:
    update = torch.tensor([length, 0.0], dtype=torch.float64)
    gradient = torch.tensor([slope, 7.0], dtype=torch.float64)
    change = predicted_change(gradient, update, torch.tensor([curvature * length, 3.0], dtype=torch.float64))
    assert change.item() == pytest.approx(-slope * length + curvature * length**2 / 2, abs=1e-9)


def test_differences_and_multiples() -> None:
    assert measured_change(2.0, 1.5) == -0.5
    assert logged_change(2.0, 2.5) == 0.5
    assert critical_multiple(FirstRise(3.0, 2.9, 3.1, True, 6)) == 3.0
    assert critical_learning_rate(0.1, 3.0) == pytest.approx(0.3)
