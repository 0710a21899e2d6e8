from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnf_offline.detect.episodes import Episode, starts, together
from hnf_offline.detect.measured import Measured


def flags(text):
    return np.array([letter == "x" for letter in text])


@pytest.mark.parametrize(
    "on, rows, expected",
    [
        ("..xx..x.", 1, [2, 6]),
        ("x.......", 1, [0]),
        ("..x.x..x", 2, [2, 7]),
        ("..x.x.x.", 2, [2]),
        ("........", 3, []),
        ("", 1, []),
    ],
)
def test_an_episode_ends_after_enough_quiet_rows(on, rows, expected):
    assert starts(flags(on), rows=rows) == expected


def test_between_the_two_thresholds_nothing_arms():
    on, off = flags(".x..x..x"), flags("x....x..")
    assert starts(on, off) == [1, 7]


def slow(on, off, rows):
    """The same as a state machine, row by row."""
    armed, quiet, found = True, 0, []
    for row, (high, low) in enumerate(zip(on, off, strict=True)):
        if high and armed:
            found.append(row)
            armed, quiet = False, 0
        elif high or not low:
            quiet = 0
        else:
            quiet += 1
            armed = armed or quiet >= rows
    return found


@given(st.lists(st.sampled_from("hml"), max_size=60), st.integers(1, 5))
def test_it_is_the_state_machine_and_causal(levels, rows):
    on = np.array([level == "h" for level in levels], dtype=bool)
    off = np.array([level == "l" for level in levels], dtype=bool)
    found = starts(on, off, rows)
    assert found == slow(on, off, rows)
    for cut in range(len(levels)):
        assert starts(on[:cut], off[:cut], rows) == [row for row in found if row < cut]


def episode(layer, size, step=8, quantity="adam.lag_rms"):
    return Episode(Measured(quantity, layer, 0, np.array([step]), np.array([size])), 0, 1.0, size)


def test_a_checkpoint_is_told_once_with_the_whole_model_first():
    (both,) = together([episode("a", 3), episode("", 2), episode("b", 5)])
    assert (both.told.value, both.worst.series.layer, both.others) == (2, "b", 1)
    assert both.more == "most in b, and in 1 more layer"
    (layers,) = together([episode("a", 3), episode("b", 5), episode("c", 4)])
    assert (layers.told.series.layer, layers.more) == ("b", "and 2 more layers")
    assert together([episode("a", 3)])[0].more == ""


def test_checkpoints_and_quantities_stay_apart():
    groups = together([episode("a", 3, 16), episode("a", 3, 8), episode("a", 3, 8, "proxy.norm_log10")])
    assert [(group.told.step, group.told.series.quantity) for group in groups] == [
        (8, "adam.lag_rms"),
        (8, "proxy.norm_log10"),
        (16, "adam.lag_rms"),
    ]
