"""What is said of checkpoints that lie too far apart, and where its figures come from."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from hnf_offline.relate.resolution import ANNOUNCED, too_sparse
from hnf_offline.relate.whole import find

from .planted import relaxation, run_of

STUDY = Path(__file__).parents[2] / "reports" / "study" / "readings"


def test_close_checkpoints_and_few_spikes_are_not_spoken_of() -> None:
    assert too_sparse(30, [200, 300, 400]) == ""
    assert too_sparse(90, [200, 400]) == "", "two spikes have one distance, which is no habit"
    assert too_sparse(None, [200, 300, 400]) == ""
    assert too_sparse(90, [200, 210, 220, 400]) == "", "an aftershock is part of its spike"


@pytest.mark.parametrize(("gap", "share"), [(50, 22), (100, 5), (500, 1)])
def test_the_further_apart_the_less_is_announced(gap: int, share: int) -> None:
    told = too_sparse(gap, [200, 300, 400, 500])
    assert f"every {gap} steps" in told and "spikes every 100" in told and f"{share} % of the spikes" in told
    assert "50 % with six or more" in told


def test_the_figures_fall_with_the_gap_and_lie_above_chance() -> None:
    assert all(one[1] >= other[1] for one, other in pairwise(ANNOUNCED))
    assert all(share >= chance for _, share, chance in ANNOUNCED)


@pytest.mark.skipif(not STUDY.exists(), reason="the study's readings are not here")
def test_the_figures_are_those_of_the_study() -> None:
    from benchmarks.study import readings
    from benchmarks.study.page import unseen
    from benchmarks.study.scoring import WINDOW, pooled
    from benchmarks.study.sparse import by_distance
    from hnf_offline.relate.relations import PRIMARY

    found = [pooled(of, PRIMARY, WINDOW) for _, _, of in by_distance(unseen(readings.kept(STUDY)))]
    assert [(round(one.recall.value, 2), round(one.chance_recall, 2)) for one in found] == [
        (share, chance) for _, share, chance in ANNOUNCED
    ]


def test_a_run_whose_checkpoints_lie_too_far_apart_is_told_so_and_another_is_not() -> None:
    made = relaxation()
    every = made.profile["step"].unique().sort().to_list()

    def caveat(stride: int) -> str:
        kept = made.profile.filter(made.profile["step"].is_in(every[::stride]))
        return find(run_of(made.log, kept), kept).verdict["caveat"]

    assert "too far apart" not in caveat(1)
    told = caveat(10)
    assert "too far apart" in told and f"every {10 * (every[1] - every[0])} steps" in told
