"""The first rise along a ray against parabolas, whose first rise is known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnf_offline.linalg.line_search import LARGEST, PRECISION, SMALLEST, first_rise, quadratic_guess


@given(crossing=st.floats(0.02, 60.0), off=st.floats(0.3, 3.0), curvature=st.floats(1e-3, 1e3))
def test_the_bracket_holds_the_crossing_of_a_parabola_and_is_narrow(
    crossing: float, off: float, curvature: float
) -> None:
    found = first_rise(lambda c: curvature / 2 * c * (c - crossing), crossing * off)
    assert found.certified
    assert found.low <= crossing <= found.high
    assert found.low <= found.value <= found.high
    assert found.high - found.low <= PRECISION * found.high


@given(crossing=st.floats(0.1, 30.0), off=st.floats(0.51, 1.99))
def test_six_values_are_enough_where_the_guess_is_within_a_factor_of_two(crossing: float, off: float) -> None:
    if off != 1.0:
        assert first_rise(lambda c: c - crossing, crossing * off).probes <= 6


def test_a_guess_that_hits_the_crossing_itself_costs_one_look_into_the_dip() -> None:
    found = first_rise(lambda c: c * (c - 1.0), 1.0)
    assert found.certified and found.probes == 7 and found.low == 1.0


@given(slope=st.floats(-1e3, -1e-3), curvature=st.floats(1e-3, 1e3))
def test_the_guess_is_the_first_rise_of_the_parabola(slope: float, curvature: float) -> None:
    c = quadratic_guess(slope, curvature)
    assert slope * c + curvature * c * c / 2 == pytest.approx(0.0, abs=1e-9 * abs(slope) * c)


@pytest.mark.parametrize(
    ("slope", "curvature"), [(-1.0, 0.0), (-1.0, -2.0), (1.0, 1.0), (math.nan, 1.0), (-1.0, math.inf)]
)
def test_no_parabola_no_guess(slope: float, curvature: float) -> None:
    assert quadratic_guess(slope, curvature, otherwise=3.0) == 3.0


def test_a_function_that_never_rises_gives_a_bound_and_says_so() -> None:
    found = first_rise(lambda c: -c)
    assert (found.value, found.low, found.high, found.certified) == (LARGEST, LARGEST, math.inf, False)


def test_a_function_that_always_rises_gives_a_bound_and_says_so() -> None:
    found = first_rise(lambda c: c)
    assert (found.value, found.low, found.high, found.certified) == (SMALLEST, 0.0, SMALLEST, False)


def test_where_the_function_is_no_number_it_has_risen() -> None:
    found = first_rise(lambda c: -1.0 if c < 3 else math.nan)
    assert found.low <= 3 <= found.high and found.certified


def test_a_guess_beyond_the_range_is_drawn_into_it() -> None:
    for guess in (1e-9, 1e9):
        found = first_rise(lambda c: c - 2.0, guess)
        assert found.low <= 2.0 <= found.high


def test_decisions_below_the_noise_are_not_certified() -> None:
    assert first_rise(lambda c: c - 2.0, noise=1e-3).certified
    assert not first_rise(lambda c: 1e-6 * (c - 2.0), noise=1e-3).certified
