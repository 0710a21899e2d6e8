"""Whether curvature adds anything is found where it does, and not found where it does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from benchmarks.study import scoring
from benchmarks.study.combination import added_by_curvature
from tests.benchmarks.study.planted import run

ONSETS = (300, 500, 700)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(scoring, "AREA_DRAWS", 40)


def family(letter: str, *, told_by: str, seed: int):
    """Five runs in which one score rises before each onset and the other is noise."""
    made = []
    for number in range(5):
        one = run(ONSETS, [], seed=number, family=letter)
        steps = one.scores["step"].to_numpy()
        generator = np.random.default_rng(100 * seed + number)
        soon = np.array([any(0 < onset - step <= 40 for onset in ONSETS) for step in steps])
        noise, other = generator.normal(size=(2, steps.size))
        scores = {"S": other, "log gradient norm": noise}
        scores[told_by] = soon * 2.0 + generator.normal(size=steps.size)
        made.append(replace(one, scores=pl.DataFrame({"step": steps, **scores})))
    return made


def test_what_only_curvature_shows_is_credited_to_it():
    found = added_by_curvature({one: family(one, told_by="S", seed=k) for k, one in enumerate("ABD")}, 40)
    assert [one.family for one in found] == ["A", "B", "D"]
    for one in found:
        assert one.difference.low > 0.2 and abs(one.without.value - 0.5) < 0.15
        assert one.with_curvature.value > 0.85


def test_what_the_gradient_norm_shows_is_not_credited_to_curvature():
    told = {one: family(one, told_by="log gradient norm", seed=k) for k, one in enumerate("ABD")}
    for one in added_by_curvature(told, 40):
        assert one.without.value > 0.85 and abs(one.difference.value) < 0.05


def test_a_family_that_lacks_a_score_is_ranked_by_the_rest():
    told = {one: family(one, told_by="S", seed=k) for k, one in enumerate("AB")}
    told["D"] = [_without(one, "log gradient norm") for one in family("D", told_by="S", seed=7)]
    assert added_by_curvature(told, 40)[-1].with_curvature.value > 0.85


def _without(one, name):
    return replace(one, scores=one.scores.drop(name))


def test_one_family_alone_has_no_others_to_learn_from():
    assert added_by_curvature({"A": family("A", told_by="S", seed=0)}, 40) == []
