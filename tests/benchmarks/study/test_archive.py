"""The study can be made in parts, and what lies beside its page is what it was written from."""

from __future__ import annotations

from dataclasses import asdict, replace

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from benchmarks.study import readings
from benchmarks.study.archive import Archive
from benchmarks.study.case import Case
from benchmarks.study.families import FAMILIES
from benchmarks.study.initial import Begun
from benchmarks.study.intervention import Outcome
from benchmarks.study.localisation import Named
from benchmarks.study.page import made_now, unseen, write
from tests.benchmarks.study.planted import run


def outcome(name: str, onsets: int = 3) -> Outcome:
    return Outcome(name, "A", 200, "as was", onsets, failed=True, final_loss=float("inf"), stalled=0.5,
                   reductions=0, reproduction="exact")  # fmt: skip


def named(name: str, *, right: bool = True) -> Named:
    return Named(name, "ramp", "plain", "layer S", 4, right, 0.25)


def begun(name: str, *, failed: bool = True) -> Begun:
    return Begun(name, "none", 2, 0.01, 401, failed, failed, near_unit_mass=0.5)


def same(one, other) -> None:
    for name in ("scores", "log"):
        assert_frame_equal(getattr(one, name), getattr(other, name))
    bare = {"scores": pl.DataFrame(), "log": pl.DataFrame(), "sparser": ()}
    told = [{**asdict(replace(which, **bare)), "scores": 0, "log": 0} for which in (one, other)]
    assert told[0] == told[1]


@pytest.mark.parametrize("letter", FAMILIES)
def test_a_case_is_read_back_as_it_was_declared(letter, tmp_path):
    for case in FAMILIES[letter].cases(3):
        readings.keep([replace(run([], []), case=case)], tmp_path)
        assert readings.kept(tmp_path)[0].case == case
        assert isinstance(case, Case)


def test_a_run_is_read_back_with_all_its_readings(tmp_path):
    whole = run([300, 500], [276, 476], seed=1, failed=True)
    missing = [None if step == 108 else float(step) for step in whole.scores["step"].to_list()]
    whole = replace(
        whole,
        scores=whole.scores.with_columns(pl.Series("RMS_t", missing)),
        certified=0.5,
        sparser=(run([300, 500], [484], gap=32, seed=1), run([300, 500], [], gap=64, seed=1)),
    )
    readings.keep([whole, run([], [204], seed=1, family="C")], tmp_path)
    back = {one.case.family: one for one in readings.kept(tmp_path)}
    same(back["A"], whole)
    assert [(one.gap, one.alarms) for one in back["A"].sparser] == [
        (one.gap, one.alarms) for one in whole.sparser
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A-test.parquet", "C-test.parquet"]


def test_the_page_is_the_same_from_what_lies_beside_it(tmp_path):
    few = [
        replace(run([300, 500], [276], seed=seed), sparser=(run([300, 500], [484], gap=32, seed=seed),))
        for seed in (1, 100, 3, 101)
    ]
    few[1] = replace(
        few[1], alarms={"stability alarm": []}
    )  # or an order of runs would not be seen in an interval
    archive = Archive(
        tuple(sorted(few, key=lambda one: one.case.name)),
        (outcome("a"), outcome("b")),
        (named("x"), named("x", right=False)),
        (begun("y"), begun("z", failed=False)),
        (made_now("", 1),),
    )
    first = write(archive, tmp_path).read_text()
    assert "## What was fixed before" in first and "Rules: 1, of which 0 are rivals" in first
    assert "## Experiment 3" in first and "## Experiment 4" in first and "## Experiment 5" in first
    back = Archive.load(tmp_path)
    # Intervals draw runs by their place: another order gives other ends.
    assert [one.case.name for one in back.runs] == [one.case.name for one in archive.runs]
    assert write(back, tmp_path).read_text() == first


def test_a_part_is_added_and_a_run_made_again_takes_the_place_of_the_old(tmp_path):
    write(Archive((run([300], [276], seed=1), run([300], [], seed=3)), (outcome("a"),)), tmp_path)
    again = Archive((run([300], [276, 476], seed=3),), (outcome("a", 1), outcome("b")), (named("x"),))
    both = Archive.load(tmp_path).with_part(again)
    assert [(one.case.seed, one.alarms["stability alarm"]) for one in both.runs] == [
        (1, [276]),
        (3, [276, 476]),
    ]
    assert [(one.run, one.onsets) for one in both.interventions] == [("a", 1), ("b", 3)]
    assert both.named == again.named
    write(Archive((run([], [], family="C"),)), tmp_path)
    alone = Archive.load(tmp_path)
    assert [one.case.family for one in alone.runs] == ["C"] and not alone.interventions, (
        "no stale part is left"
    )


def test_runs_that_thresholds_were_chosen_on_are_told_apart_and_not_judged(tmp_path):
    tuned, tested = run([300], [276], seed=0), run([300], [500], seed=1)
    assert unseen([tuned, tested]) == [tested] and unseen([tuned]) == [tuned]
    text = write(Archive((tuned, tested)), tmp_path).read_text()
    assert "1 runs (test seeds), 1 onsets" in text and "The 1 runs on which thresholds were chosen" in text
    rows = [line.split(" | ") for line in text.splitlines() if " | stability alarm | " in line]
    assert {row[1]: row[6] for row in rows if row[1] in {"tune", "test"}} == {"tune": "1.00", "test": "0.00"}


def test_a_folder_without_a_study_is_empty(tmp_path):
    assert Archive.load(tmp_path / "nothing") == Archive()
