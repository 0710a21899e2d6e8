from __future__ import annotations

from itertools import pairwise

import numpy as np

from hnf_offline.detect.regimes import regimes
from hnf_offline.detect.spikes import find_spikes
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
    after = [part for part in found if part["regime"] == "excursion"]
    assert [part["start"] for part in after] == [onset + (-onset) % 8 for onset in run.truth.onsets]


def test_the_quiet_twin_climbs_and_then_hovers():
    found = regimes(hover_run().profile, ())
    assert [part["regime"] for part in found] == ["quiet", "climb", "hover"]
    assert found[-1]["end"] == 1200


def test_levels_have_their_names():
    noise = np.exp(0.2 * np.random.default_rng(0).standard_normal(60))
    assert names(0.1 * np.ones(20)) == ["quiet"]
    assert names(np.clip(0.45 * noise, 0.31, 0.79)) == ["plateau"]
    assert names([0.5] * 5 + [3.0] * 3 + [0.5] * 5) == ["plateau", "excursion", "plateau"]


def test_the_stretches_cover_all_checkpoints_in_order():
    run = relaxation_run(seed=3)
    found = regimes(run.profile, find_spikes(run.log))
    assert found[0]["start"] == run.profile["step"].min()
    assert found[-1]["end"] == run.profile["step"].max()
    assert all(a["end"] < b["start"] for a, b in pairwise(found))


def test_nothing_measured_has_no_regime():
    assert regimes(table(), ()) == ()
    assert regimes(profile([np.nan, np.nan]), ()) == ()
