"""Scores that cost more, and S against its own plateau: right at each checkpoint, ranked on those that have them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from benchmarks.study import dear, scoring
from benchmarks.study.combination import added_by_curvature
from benchmarks.study.families import FAMILIES
from benchmarks.study.plateau import BEFORE, LEAST, NAME, with_plateau
from hnf_offline.pipeline import analyse
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.run import open_run
from hnf_offline.table import table
from tests.benchmarks.study.planted import run
from tests.relate.planted import rows

ONSETS = (300, 500, 700)


def told(*levels: float | None) -> pl.DataFrame:
    return pl.DataFrame(
        {"step": list(range(len(levels))), "S": levels}, schema={"step": pl.Int64, "S": pl.Float64}
    )


def test_s_is_held_against_the_checkpoints_before_alone():
    rises = with_plateau(told(*[0.5] * BEFORE, 1.0, 0.5, 4.0))[NAME].to_list()
    assert rises[:LEAST] == [None] * LEAST and rises[LEAST:BEFORE] == [1.0] * (BEFORE - LEAST)
    assert rises[BEFORE:] == [2.0, 1.0, 8.0]
    assert with_plateau(told(*[0.5] * BEFORE, 1.0, 0.5))[NAME].to_list() == rises[:-1], "no look ahead"


def test_a_plateau_forgets_what_is_long_gone():
    long_ago = with_plateau(told(*[9.0] * 30, *[0.5] * BEFORE, 1.0))[NAME].to_list()
    assert long_ago[-1] == 2.0


def test_checkpoints_without_s_have_no_plateau_and_make_none():
    rises = with_plateau(told(0.5, None, 0.5, 0.5, 0.5, math.inf, 0.5, None, 1.0))[NAME].to_list()
    assert rises[-2:] == [None, 2.0] and rises[6] is None, "four before the seventh"
    assert with_plateau(told(*[0.0] * 6, 1.0))[NAME][-1] is None, "a plateau of 0 is none"
    bare = pl.DataFrame({"step": [1], "loss": [1.0]})
    assert with_plateau(bare).columns == bare.columns


@pytest.fixture
def few_draws(monkeypatch):
    monkeypatch.setattr(scoring, "AREA_DRAWS", 40)


def with_scores(number: int, every: int):
    """A run in which the plain eigenvalue tells of each spike and near-unit mass is noise, at every n-th checkpoint."""
    one = run(ONSETS, [], seed=number)
    steps = one.scores["step"].to_numpy()
    generator = np.random.default_rng(number)
    soon = np.array([any(0 < onset - step <= 16 for onset in ONSETS) for step in steps])
    known = [place % every == 0 for place in range(steps.size)]
    sharp = [float(now) if is_known else None for now, is_known in zip(soon, known, strict=True)]
    noise = [
        float(now) if is_known else None
        for now, is_known in zip(generator.normal(size=steps.size), known, strict=True)
    ]
    columns = {"step": steps, "S": -soon.astype(float), "log loss": generator.normal(size=steps.size)}
    columns |= {dear.LAMBDA_MAX: sharp, dear.NEAR_UNIT_MASS: noise}
    return replace(one, scores=pl.DataFrame(columns))


@pytest.mark.usefixtures("few_draws")
def test_the_dear_scores_are_ranked_on_the_checkpoints_that_have_them():
    runs = [with_scores(number, every=2) for number in range(4)]
    assert all(
        one.scores.height == whole.scores.height // 2 + 1
        for one, whole in zip(dear.known(runs), runs, strict=True)
    )
    heading, _, table = dear.section({"A": [*runs, run(ONSETS, [], seed=9)]})
    row = [cell.strip() for cell in table.splitlines()[2].split("|")[1:-1]]
    assert "plain Hessian" in heading and row[1] == "4", "the run without them is not counted"
    assert row[3].startswith("1.00 [") and row[5].startswith("0.00 [") and 0.2 < float(row[4][:4]) < 0.8


@pytest.mark.usefixtures("few_draws")
def test_without_dear_scores_there_is_no_table_and_the_regression_never_takes_them():
    plain = {letter: [run(ONSETS, [], seed=k) for k in range(3)] for letter in "AB"}
    assert not list(dear.section(plain))
    paid = {letter: [with_scores(k, every=1) for k in range(3)] for letter in "AB"}
    without = {
        letter: [replace(one, scores=one.scores.drop(dear.DEAR)) for one in runs]
        for letter, runs in paid.items()
    }
    assert added_by_curvature(paid, 16) == added_by_curvature(without, 16)


def test_of_several_blocks_the_mean_counts_and_of_the_eigenvalues_that_of_the_whole_model() -> None:
    profile = table([
        *rows("koopman.near_unit_mass", [8], [0.2], layer="h.0"),
        *rows("koopman.near_unit_mass", [8], [0.6], layer="h.1"),
        *rows("hessian.lambda_max", [8, 16], [5.0, math.inf]),
        *rows("hessian.lambda_max", [8], [50.0], layer="h.0"),
    ])
    scores = dear.with_dear(pl.DataFrame({"step": [8, 12, 16], "S": [0.1, 0.2, 0.3]}), profile)
    assert scores[dear.NEAR_UNIT_MASS].to_list() == [pytest.approx(0.4), None, None]
    assert scores[dear.LAMBDA_MAX].to_list() == [5.0, None, None]


def test_dear_scores_are_those_of_the_profile(tmp_path):
    case = replace(FAMILIES["D"].cases(0)[3], first=202)
    measured = dear.measured_dearly(case, tmp_path)
    known = measured.scores.filter(pl.col(dear.LAMBDA_MAX).is_not_null())
    assert known["step"].to_list() == measured.scores["step"].to_list()[::2]
    again = analyse(
        open_run(tmp_path / "runs" / case.folder),
        ProfileSettings(tier="curvature", device="cpu", last_step=202, koopman=True),
        tmp_path / "again",
        rule="robust",
    ).profile.filter(pl.col("step") == 202)
    exact = again.filter((pl.col("quantity") == "hessian.lambda_max") & (pl.col("layer") == ""))[
        "value"
    ].item()
    masses = again.filter(pl.col("quantity") == "koopman.near_unit_mass")["value"]
    assert known[dear.LAMBDA_MAX][0] == pytest.approx(exact, rel=0.25), "screening knows it to a fifth"
    assert (
        known[dear.NEAR_UNIT_MASS][0] == pytest.approx(float(masses.mean()), rel=1e-6) and masses.len() >= 1
    )
