import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnf_offline.report.axis import Axis, segments, value_axis
from hnf_offline.report.chart import Line, Strip, fitting_cap, fitting_scale, not_finite_windows


def test_thinning_keeps_every_pixel_columns_lowest_and_highest_point():
    steps = np.arange(100_000.0)
    values = np.sin(steps / 7)
    values[43_210] = 99.0
    values[76_543] = -99.0
    [(x, y)] = segments(steps, values, None, 0.0, 99_999.0, 800)
    assert len(x) <= 2 * 801
    assert (43_210.0, 99.0) in set(zip(x, y, strict=True))
    assert (76_543.0, -99.0) in set(zip(x, y, strict=True))


def test_a_line_is_cut_where_it_is_not_finite_and_where_checkpoints_are_missing():
    steps = np.array([0.0, 10, 20, 30, 60, 70])
    values = np.array([1.0, 2, np.nan, 4, 5, 6])
    pieces = segments(steps, values, 15.0, 0.0, 70.0, 800)
    assert [list(x) for x, _ in pieces] == [[0, 10], [30], [60, 70]]


def test_stretches_that_are_not_finite_become_labelled_windows():
    steps = np.arange(1.0, 11)
    values = np.ones(10)
    values[3:5] = np.nan
    values[8] = np.inf
    first, second = not_finite_windows(steps, values)
    assert (first.first, first.last, first.label) == (3.5, 5.5, "NaN")
    assert (second.first, second.last, second.label) == (8.5, 9.5, "∞")


@given(
    st.floats(-1e6, 1e6),
    st.floats(1e-3, 1e6),
    st.integers(2, 12),
)
def test_linear_ticks_are_inside_the_axis_and_evenly_spaced(low, width, count):
    axis = Axis(low, low + width, 0, 100)
    ticks = axis.ticks(count)
    assert 1 <= len(ticks) <= count + 2
    assert all(low - 1e-6 * width - 1e-9 <= tick <= low + width * (1 + 1e-6) + 1e-9 for tick in ticks)


@given(st.floats(1e-9, 1e3), st.floats(10.0, 1e12))
def test_log_ticks_are_inside_the_axis(low, factor):
    axis = Axis(low, low * factor, 0, 100, "log")
    ticks = axis.ticks(4)
    assert ticks == sorted(ticks)
    assert all(low * 0.99 <= tick <= low * factor * 1.01 for tick in ticks)
    assert np.all(np.diff(axis.pixels(np.array(ticks))) > 0)


def test_a_large_peak_gets_a_log_axis_not_a_cut():
    values = np.concatenate([np.full(100, 2.0), [500.0]])
    assert fitting_scale(values) == "log"
    assert fitting_cap(values) is None


def test_without_a_log_axis_a_giant_is_cut_and_known_to_be():
    values = np.concatenate([np.linspace(-1, 1, 200), [1e6]])
    assert fitting_scale(values) == "linear"
    cap = fitting_cap(values)
    assert cap is not None and 1 < cap < 100


def test_thresholds_and_error_bars_fit_the_axis():
    line = Line("S", "alarm", np.array([1.0, 2.0]), np.array([0.2, 0.3]), low=np.array([0.1, np.nan]),
                high=np.array([0.4, np.nan]))  # fmt: skip
    from hnf_offline.report.chart import Level

    axis = value_axis(Strip("S", (line,), levels=(Level(1.0, "edge"),)), 0, 100, 0, 3)
    assert axis.low <= 0.1 and axis.high >= 1.0


@pytest.mark.parametrize("values", [[np.nan, np.inf], [], [3.0], [0.0, 0.0]])
def test_no_values_or_one_still_make_an_axis(values):
    line = Line("", "loss", np.arange(float(len(values))), np.array(values, dtype=float))
    axis = value_axis(Strip("loss", (line,)), 0, 100, 0, 3)
    assert axis.high > axis.low
    assert axis.ticks()
