from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnf_offline.detect.regimes import regimes
from hnf_offline.detect.spikes import find_spikes
from hnf_offline.findings import Spike
from hnf_offline.synthetic import hover_run, relaxation_run
from hnf_offline.table import Row, table


def profile(values, gap=8):
    return table(
        Row(gap * (i + 1), "", "model", -1, "hessian.stability_ratio", float(v)) for i, v in enumerate(values)
    )


def names(values, gap=8):
    return [part["regime"] for part in regimes(profile(values, gap), ())]


def test_climbs_between_spikes_and_their_aftershocks():
    run = relaxation_run()
    found = regimes(run.profile, find_spikes(run.log))
    climbs = [part for part in found if part["regime"] == "climb"]
    assert len(climbs) == len(run.truth.onsets)
    for climb, onset in zip(climbs, run.truth.onsets, strict=True):
        assert onset - 20 <= climb["end"] < onset
        assert "predictive" in climb["text"]
    after = [part for part in found if part["regime"] == "aftershock"]
    assert [part["start"] for part in after] == [onset + (-onset) % 8 for onset in run.truth.onsets]
    assert all(part["end"] - onset <= 40 for part, onset in zip(after, run.truth.onsets, strict=True))


def test_the_quiet_twin_climbs_and_then_hovers():
    found = regimes(hover_run().profile, ())
    assert [part["regime"] for part in found] == ["quiet", "climb", "hover"]
    assert found[-1]["end"] == 1200


def test_levels_have_their_names():
    noise = np.exp(0.2 * np.random.default_rng(0).standard_normal(60))
    assert names(0.1 * np.ones(20)) == ["quiet"]
    assert names(np.clip(0.45 * noise, 0.31, 0.79)) == ["plateau"]
    assert names([0.5] * 5 + [3.0] * 3 + [0.5] * 5) == ["plateau", "excursion", "plateau"]


def spike(onset):
    return Spike(1, onset, onset + 2, onset + 10, 1.0, 3.0, 2.0, 20.0, "spike", True, 10, 0.0, False)


def told(values, onset=None, gap=8):
    return regimes(profile(values, gap), () if onset is None else (spike(onset),))


def test_after_a_spike_comes_its_aftershock_until_s_is_lowest():
    climb = list(0.4 * 1.07 ** np.arange(14))
    found = told([*climb, 1.6, 0.9, 0.6, *climb], onset=114)  # checkpoint 120 is the first after it
    assert [(part["regime"], part["start"], part["end"]) for part in found] == [
        ("climb", 8, 112),
        ("aftershock", 120, 136),
        ("climb", 144, 248),
    ]
    assert found[1]["text"].startswith("S 0.60 to 1.60, aftershock of the spike at 114")


def test_the_aftershock_lasts_forty_steps_at_most():
    found = told([0.5] * 6 + list(np.geomspace(2, 0.35, 20)), onset=49)
    assert [part["regime"] for part in found] == ["plateau", "aftershock", "excursion", "falling"]
    assert found[1]["end"] == 80
    assert "S falls from 0." in found[-1]["text"]


def test_a_climb_past_the_edge_is_one_stretch_with_its_highest_value():
    (climb,) = told([*(0.45 * 1.08 ** np.arange(14)), 1.35, 1.02])
    assert (climb["regime"], climb["text"]) == (
        "climb",
        "S climbs from 0.45 to 1.35, last 1.02: crossing 1 is predictive here",
    )


def test_a_single_checkpoint_is_no_regime_and_goes_to_its_longer_neighbour():
    assert names([0.5] * 9 + [1.4] + [0.5] * 5) == ["plateau"]
    (plateau,) = told([0.5] * 9 + [1.4] + [0.5] * 5)
    assert "above 1 at 1 of 15 checkpoints" in plateau["text"]


def test_a_plateau_needs_five_checkpoints_and_a_level_s():
    assert names([0.5] * 5) == ["plateau"]
    assert names([0.5] * 4) == ["short"]
    assert names(np.geomspace(0.75, 0.35, 10)) == ["falling"]
    (few,) = told([0.93, 0.95])
    assert (few["regime"], few["text"]) == (
        "short",
        "S 0.93 to 0.95 over 2 checkpoints: too few to call a regime",
    )


def test_hovering_below_one_is_not_said_to_cross_it():
    values = 0.88 + 0.05 * np.sin(np.arange(20))
    (below,) = told(values)
    assert below["regime"] == "hover"
    assert "does not cross it" in below["text"]
    (across,) = told(values + 0.12)
    assert "crossing 1 is normal here" in across["text"]
    assert f"above 1 at {np.sum(values + 0.12 > 1)} of 20 checkpoints" in across["text"]


def test_a_climb_that_was_taken_back_at_once_is_no_climb():
    values = 0.34375 * np.exp(np.cumsum([-0.125, -0.125, 0.125, 0.15625, -0.25, -0.25]))
    (part,) = told(values)
    assert part["regime"] == "unsteady"
    assert "climbs" not in part["text"]


def true_of(part, steps, values):
    """Whether the sentence of a stretch holds for the checkpoints it covers."""
    inside = values[(steps >= part["start"]) & (steps <= part["end"])]
    numbers = [float(word.rstrip(",:;")) for word in re.findall(r"\d+\.\d+[,:;]?", part["text"])]
    assert min(numbers) == pytest.approx(inside.min(), abs=0.006) or part["regime"] == "falling"
    assert max(numbers) == pytest.approx(inside.max(), abs=0.006) or part["regime"] == "falling"
    if counted := re.search(r"above (?:1|the edge) at (\d+) of (\d+) checkpoint", part["text"]):
        assert (int(counted[1]), int(counted[2])) == (np.sum(inside > 1), inside.size)
    elif part["regime"] not in {"aftershock", "climb"}:
        assert (inside <= 1).all()
    if part["regime"] == "climb":
        assert inside[-1] > inside.min()
    if part["regime"] not in {"aftershock", "short"}:
        assert inside.size >= 3
    if part["regime"] == "plateau":
        assert inside.size >= 5


@settings(max_examples=150, deadline=None)
@given(
    logs=st.lists(st.floats(-0.35, 0.35), min_size=1, max_size=70),
    start=st.floats(0.1, 1.5),
    onsets=st.lists(st.integers(0, 560), max_size=5, unique=True),
)
def test_every_sentence_is_true_of_its_numbers(logs, start, onsets):
    values = np.clip(start * np.exp(np.cumsum(logs)), 0.02, 5.0)
    found = regimes(profile(values), [spike(onset) for onset in onsets])
    steps = 8 * (1 + np.arange(values.size))
    for part in found:
        true_of(part, steps, values)
    covered = [step for part in found for step in steps if part["start"] <= step <= part["end"]]
    assert covered == steps.tolist()


#: S of a small transformer without norms, Adam at a constant rate, full batch: every 12 steps from 252 on.
REAL_S = [
    0.949, 1.052, 1.095, 0.728, 0.63, 0.665, 0.671, 0.772, 0.969, 1.261, 1.018, 0.813, 0.849, 0.431, 0.545, 0.536,
    0.602, 0.654, 0.728, 0.806, 0.907, 1.073, 1.308, 0.878, 0.509, 0.548, 0.515, 0.538, 0.591, 0.639, 0.594, 0.663,
    0.739, 0.82, 0.912, 1.002, 1.104, 1.42, 0.78, 0.357, 0.402, 0.388, 0.445, 0.475, 0.504, 0.558, 0.609, 0.663,
    0.718, 0.775, 0.832, 0.888, 0.944, 0.999, 1.051, 1.085, 1.294, 0.628, 0.411, 0.363, 0.295, 0.374, 0.329,
]  # fmt: skip
REAL_ONSETS = (152, 270, 377, 520, 693, 919)


def test_a_really_trained_run_climbs_to_each_spike():
    values, steps = np.array(REAL_S), 252 + 12 * np.arange(len(REAL_S))
    measured = table(
        Row(int(step), "", "model", -1, "hessian.stability_ratio", value)
        for step, value in zip(steps, REAL_S, strict=True)
    )
    found = regimes(measured, [spike(onset) for onset in REAL_ONSETS])
    assert [part["regime"] for part in found] == [
        "short", *["aftershock", "climb"] * 4, "aftershock", "plateau",
    ]  # fmt: skip
    climbs = [part["end"] for part in found if part["regime"] == "climb"]
    assert all(0 < onset - end <= 12 for onset, end in zip(REAL_ONSETS[2:], climbs, strict=True))
    for part in found:
        true_of(part, steps, values)


def test_the_stretches_cover_all_checkpoints_in_order():
    run = relaxation_run(seed=3)
    found = regimes(run.profile, find_spikes(run.log))
    assert found[0]["start"] == run.profile["step"].min()
    assert found[-1]["end"] == run.profile["step"].max()
    assert all(a["end"] < b["start"] for a, b in pairwise(found))


def test_nothing_measured_has_no_regime():
    assert regimes(table(), ()) == ()
    assert regimes(profile([np.nan, np.nan]), ()) == ()
