from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnf_offline.relate.events import clusters, score


def test_hits_misses_and_false_alarms_by_hand() -> None:
    found = score([80, 300, 480], [100, 500, 700], first=0, last=1000)
    assert found.recall == pytest.approx(2 / 3)
    assert found.precision == pytest.approx(2 / 3)
    assert found.leads == (20, 20)
    assert found.false_alarms_per_1000 == pytest.approx(1000 / 1001)
    assert found.time_in_warning == pytest.approx(240 / 1001)


def test_an_alarm_at_the_onset_is_no_warning() -> None:
    assert score([100], [100], first=0, last=400).recall == 0
    assert score([99], [100], first=0, last=400).recall == 1
    assert score([99], [100], minimum_lead=2, first=0, last=400).recall == 0
    assert score([99], [100], minimum_lead=2, first=0, last=400).precision == 0


def test_window_edges() -> None:
    assert score([20], [100], first=0, last=400).recall == 1
    assert score([19], [100], first=0, last=400).recall == 0


def test_lead_is_taken_from_the_first_alarm() -> None:
    assert score([40, 90], [100], first=0, last=400).leads == (60,)


def test_one_alarm_counts_for_one_cluster() -> None:
    found = score([80], [100, 150], first=0, last=400)
    assert found.n_spikes == 2
    assert found.recall == pytest.approx(0.5)
    assert clusters([100, 120, 130, 150], 0, 400).tolist() == [100, 150]


def test_aftershocks_and_the_censored_tail_are_ignored() -> None:
    assert score([105, 140], [100], first=0, last=400).n_alarms == 0
    assert score([141], [100], first=0, last=400).n_alarms == 1
    tail = score([350], [100], first=0, last=400)
    assert tail.n_alarms == 0
    assert tail.precision is None
    assert score([350], [390], first=0, last=400).precision == 1


def test_nothing_is_scored_without_spikes_or_alarms() -> None:
    quiet = score([100], [], first=0, last=400)
    assert quiet.recall is None
    assert quiet.chance_recall is None
    assert quiet.precision == 0
    assert quiet.chance_precision == 0
    assert score([], [100], first=0, last=400).recall == 0
    assert score([], [100], first=0, last=400).precision is None


def test_always_alarming_has_no_skill() -> None:
    onsets = [100, 250, 330, 500]
    found = score(range(0, 600, 2), onsets, first=0, last=599, resolution=2)
    assert found.recall == found.chance_recall == 1
    assert found.precision == pytest.approx(found.chance_precision)


@pytest.mark.parametrize(("n", "resolution"), [(1, 1), (4, 8), (9, 8)])
def test_exact_chance_agrees_with_random_placement(n: int, resolution: int) -> None:
    onsets, random = [130, 250, 410, 560], np.random.default_rng(0)
    grid = np.arange(0, 800, resolution)
    # only draws in which every alarm is scored: that is what chance is conditioned on
    possible = [g for g in grid.tolist() if score([g], onsets, first=0, last=799).n_alarms]
    drawn = [
        score(random.choice(possible, n, replace=False).tolist(), onsets, first=0, last=799)
        for _ in range(1500)
    ]
    exact = score(possible[:n], onsets, first=0, last=799, resolution=resolution)
    assert exact.chance_recall == pytest.approx(np.mean([s.recall for s in drawn]), abs=0.03)
    assert exact.chance_precision == pytest.approx(np.mean([s.precision for s in drawn]), abs=0.03)


@given(
    st.lists(st.integers(0, 999), max_size=12),
    st.lists(st.integers(1, 999), max_size=8),
    st.integers(0, 10_000),
)
@settings(max_examples=80, deadline=None)
def test_only_time_differences_matter(alarms: list[int], onsets: list[int], shift: int) -> None:
    here = score(alarms, onsets, first=0, last=999, resolution=4)
    there = score(
        [a + shift for a in alarms], [o + shift for o in onsets], first=shift, last=999 + shift, resolution=4
    )
    assert here == there
    assert 0 <= here.time_in_warning <= 1
    for share in (here.recall, here.precision, here.chance_recall, here.chance_precision):
        assert share is None or 0 <= share <= 1
