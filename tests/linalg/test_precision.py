"""Bits from first and second derivatives: against numbers rounded to that many bits."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hnf_offline.linalg.precision import first_order_bits, required_bits, second_order_bits


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def rounded(value: float, bits: int) -> float:
    """To a relative error of at most 2^-bits."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * 2**bits) / 2**bits, exponent)


def test_closed_forms() -> None:
    assert float(first_order_bits(number(4.0), number(2.0), number(2.0**-10))) == 13.0
    assert float(second_order_bits(number(4.0), number(2.0), number(2.0**-10))) == 7.0
    assert float(required_bits(number(4.0), number(4.0), number(2.0), number(2.0**-10))) == 13.0
    assert float(required_bits(number(2.0**-6), number(4.0), number(2.0), number(2.0**-10))) == 7.0


def test_a_linear_map_needs_nothing_of_second_order() -> None:
    assert float(second_order_bits(number(0.0), number(1.0), number(0.1))) == -math.inf
    assert float(required_bits(number(1.0), number(0.0), number(1.0), number(0.25))) == 2.0


@settings(max_examples=100, deadline=None)
@given(st.floats(1.0, 2.0), st.integers(2, 30))
def test_that_many_bits_keep_the_error_within_twice_the_accuracy(value: float, bits_of_accuracy: int) -> None:
    accuracy = 2.0**-bits_of_accuracy
    cases: list[tuple[Callable[[float], float], float, float]] = [
        (lambda x: x * x, 2 * value, 1.0),
        # Flat at the point itself: only the second order is left.
        (lambda x: (x - value) ** 2, 0.0, 1.0),
    ]
    for function, lipschitz, curvature in cases:
        bits = required_bits(number(lipschitz), number(curvature), number(value), number(accuracy))
        whole = max(1, math.ceil(float(bits)))
        assert abs(function(rounded(value, whole)) - function(value)) <= 2 * accuracy


def test_the_second_order_bits_are_not_twice_too_many() -> None:
    """At a flat point half the bits of the accuracy do; with two fewer the error can exceed it."""
    value, accuracy = 1.0 + 1 / 3, 2.0**-20
    bits = float(second_order_bits(number(1.0), number(value), number(accuracy)))
    assert bits == pytest.approx(10 + math.log2(value))
    worst = (value * 2.0 ** -(bits - 2)) ** 2
    assert worst == pytest.approx(16 * accuracy)


def test_the_published_obstruction_is_false() -> None:
    """It would leave x^2 on [0, 1] (kappa = D = 1) an error of at least kappa D^2 / 8 in any precision."""
    worst = max(abs(rounded(k / 997, 24) ** 2 - (k / 997) ** 2) for k in range(998))
    assert worst < 1e-6 < 1 / 8
