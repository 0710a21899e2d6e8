"""A run of the study is read as `hnf report` reads it, with all of its checkpoints and with few."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest

from benchmarks.study.analysis import analysed, read
from benchmarks.study.families import FAMILIES
from benchmarks.study.imminence import NAME, imminent
from hnf_offline import synthetic
from hnf_offline.detect.spikes import find_spikes
from hnf_offline.pipeline import analyse
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.relate.rules import STABILITY_RULES, merged
from hnf_offline.run import open_run


@pytest.fixture(scope="module")
def blown_up(tmp_path_factory):
    """The end of a run that blows up, and the folder that it lies in."""
    cache = tmp_path_factory.mktemp("study")
    case = replace(FAMILIES["D"].cases(0)[3], first=202)
    return analysed(case, cache), cache


def test_alarms_and_spikes_are_those_of_the_report(blown_up, tmp_path):
    run, cache = blown_up
    folder = cache / "runs" / run.case.folder
    settings = ProfileSettings(tier="stability", device="cpu")
    found = analyse(open_run(folder), settings, cache / "profiles" / run.case.folder, rule="robust").findings
    assert run.onsets == tuple(spike.onset for spike in found.spikes) and run.failed
    known = [
        a.known_at
        for a in found.alarms
        if a.rule in STABILITY_RULES and a.layer == "" and a.severity != "info"
    ]
    assert run.alarms["stability alarm"] == merged(known, 16).tolist() and known
    assert run.last == run.onsets[0] and run.first == 202


def test_the_imminence_alarm_is_scored_at_the_resolution_of_checkpoints(blown_up):
    run, cache = blown_up
    profile = pl.read_parquet(cache / "profiles" / run.case.folder / "profile.parquet")
    log = open_run(cache / "runs" / run.case.folder).log
    assert log is not None
    raised = [step for step, _ in imminent(profile, log.rows, find_spikes(log.rows, rule="robust"))]
    assert run.alarms[NAME] == raised and raised, "this run blows up"
    assert run.resolution[NAME] == run.gap and run.at[NAME][:2] == [run.first, run.first + 1]


def test_scores_are_those_of_the_profile_and_of_the_log_up_to_then(blown_up):
    run, cache = blown_up
    profile = pl.read_parquet(cache / "profiles" / run.case.folder / "profile.parquet")
    ratio = profile.filter((pl.col("quantity") == "hessian.stability_ratio") & (pl.col("layer") == "")).sort(
        "step"
    )
    assert run.certified == pytest.approx(ratio["certified"].cast(float).mean())
    finite = ratio.filter(pl.col("value").is_finite())
    ours = run.scores.filter(pl.col("S").is_not_null())
    assert (
        ours["step"].to_list() == finite["step"].to_list()
        and ours["S"].to_list() == finite["value"].to_list()
    )
    logged = dict(zip(run.log["step"], run.log["grad_norm"], strict=True))
    for step, value in run.scores.select("step", "log gradient norm").drop_nulls().iter_rows():
        assert value == pytest.approx(pl.Series([logged[step]]).log().item())


def test_fewer_checkpoints_are_a_part_of_all():
    made = synthetic.relaxation_run(gap=8, noise=0.0, lead=20)
    case = FAMILIES["A"].cases(0)[0]
    whole, sparse, shifted = (
        read(case, made.profile, made.log, every, offset) for every, offset in ((1, 0), (4, 0), (4, 2))
    )
    steps = whole.scores["step"].to_list()
    assert sparse.scores["step"].to_list() == steps[::4] and shifted.scores["step"].to_list() == steps[2::4]
    assert (whole.gap, sparse.gap) == (8, 32) and whole.resolution["S > 1"] < sparse.resolution["S > 1"]
    assert (whole.first, whole.last, whole.onsets) == (sparse.first, sparse.last, sparse.onsets)
    assert set(sparse.alarms["S > 1"]) <= set(sparse.scores["step"])


def test_every_gap_is_read_from_two_places(blown_up):
    run, _ = blown_up
    saved = run.scores.height
    told = [(one.gap, int(one.scores["step"][0])) for one in run.sparser]
    assert told[:2] == [(16, 202), (16, 210)] and len(set(told)) == len(told)
    assert all(len(range(0, saved * 8, gap)) >= 2 for gap, _ in told)
