"""The study's page says what its numbers say, and can be made with one command."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from benchmarks.study import page
from benchmarks.study.__main__ import main
from benchmarks.study.archive import Archive
from benchmarks.study.page import announces_more_than_chance, events, headline, made_now, write
from benchmarks.study.scoring import pooled
from benchmarks.study.thumbnails import drawn
from tests.benchmarks.study.planted import run

ROOT = Path(__file__).resolve().parents[3]
RULE = "stability alarm"


def announcing(seed: int):
    return run([300, 500, 700], [276, 476, 684], seed=seed)


def useless(seed: int):
    return run(
        [300, 500, 700], [100 + 8 * ((seed * 7 + k * 37) % 100) for k in range(3)], seed=seed, family="B"
    )


def test_the_first_paragraph_tells_what_fails_as_plainly_as_what_holds():
    told = headline({
        "A": [announcing(seed) for seed in range(4)],
        "B": [useless(seed) for seed in range(4)],
        "C": [run([], [204], seed=seed, family="C") for seed in range(3)],
        "G": [run([300], [], seed=seed, family="G") for seed in range(3)],
    })
    holds, fails, mute, silent = told.split(". ", 3) if told.count(". ") == 3 else pytest.fail(told)
    assert "better than chance in: climb" in holds and "recall 1.00" in holds
    assert "not surely, in: hover" in fails
    assert "never spoke in: bad batches (3 spikes)" in mute
    assert "no spikes" in silent and "1.2" in silent


def test_better_than_chance_needs_both_shares_and_three_runs():
    assert announces_more_than_chance(pooled([announcing(seed) for seed in range(4)], RULE, 80))
    assert not announces_more_than_chance(pooled([announcing(0)], RULE, 80)), "one run has no interval"
    crying = [run([300], list(range(100, 901, 8)), seed=seed) for seed in range(4)]
    assert not announces_more_than_chance(pooled(crying, RULE, 80)), "who always warns announces by chance"


def test_every_spike_and_episode_is_in_the_tables(tmp_path):
    runs = [announcing(0), run([], [204], seed=2, family="C")]
    written = write(Archive(tuple(runs), made=(made_now("--smoke", 60),)), tmp_path / "out")
    text = written.read_text()
    assert (
        "![runs of family A](family-A.png)" in text
        and (tmp_path / "out" / "family-C.png").stat().st_size > 1000
    )
    spikes, episodes = (
        pl.read_parquet(tmp_path / "out" / f"{name}.parquet") for name in ("spikes", "episodes")
    )
    assert spikes.equals(events(runs)[0]) and spikes.filter(pl.col("onset").is_null())["run"].to_list() == [
        runs[1].case.name
    ]
    assert episodes.filter(pl.col("run") == runs[0].case.name)["step"].to_list() == [276, 476, 684]
    told = json.loads((tmp_path / "out" / "study.json").read_text())
    assert told["runs"][0]["onsets"] == [300, 500, 700] and told["made"][0]["command"].endswith("--smoke")
    assert "torch" in told["made"][0]["versions"] and "`python -m benchmarks.study --smoke` | 1 min" in text


def test_fewer_checkpoints_are_told_by_gap_and_healthy_runs_count_there_too(tmp_path):
    few = [
        replace(announcing(seed), sparser=(run([300, 500, 700], [484], gap=32, seed=seed),))
        for seed in (1, 3, 5)
    ]
    healthy = replace(
        run([], [], seed=7, family="C"), sparser=(run([], [260, 484], gap=32, seed=7, family="C"),)
    )
    text = write(Archive((*few, healthy)), tmp_path).read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith(("| 8 | ", "| 32 | "))]
    told = {row[0]: row for row in rows}
    assert told["| 8"][3] == told["| 32"][3] == "4"
    assert told["| 8"][4].startswith("1.00") and told["| 32"][4].startswith("0.33")
    assert told["| 8"][6].startswith("1.00") and told["| 32"][6].startswith("0.60")
    assert "grid 32" in told["| 32"][8]


def test_how_much_of_s_is_certified_stands_beside_every_family(tmp_path):
    half = [replace(announcing(seed), certified=share) for seed, share in ((1, 1.0), (3, 0.0))]
    text = write(Archive((*half, run([], [], seed=5, family="C"))), tmp_path).read_text()
    assert "S is certified at 50% of a run's checkpoints." in text and "S was not measured." in text


def test_a_thumbnail_shows_the_run():
    runs = [announcing(0), run([], [204], seed=1)]
    loss, ratio, *_ = drawn(runs).axes
    assert [line.get_xdata()[0] for line in loss.lines[1:4]] == [300, 500, 700]
    assert [line.get_xdata()[0] for line in loss.lines[4:]] == [276, 476, 684]
    assert loss.lines[0].get_ydata().tolist() == runs[0].log["loss"].to_list()
    assert ratio.lines[0].get_ydata().tolist() == runs[0].scores["S"].to_list()
    assert [one.get_title() for one in drawn(runs).axes[::2]] == [one.case.name for one in runs]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["--seeds", "some"], "--seeds some"),
        (["--families", "AZ"], "Z"),
        (["--experiments", "6"], "6: there"),
    ],
)
def test_a_wrong_option_is_one_line(typed, told, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["study", *typed])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and told in capsys.readouterr().err


def test_a_part_of_the_study_never_takes_the_place_of_the_whole(monkeypatch):
    places = []
    monkeypatch.setattr(page, "write", lambda archive, out: places.append(str(out)))
    monkeypatch.setattr("benchmarks.study.__main__.side_by_side", lambda *_: [])
    for typed in (
        [],
        ["--seeds", "fresh"],
        ["--smoke"],
        ["--families", "D"],
        ["--seeds", "tune"],
        ["--experiments", "12"],
        ["--experiments", "1234"],
        ["--out", "x"],
        ["--families", "D", "--add"],
    ):
        monkeypatch.setattr(sys, "argv", ["study", *typed])
        main()
    assert places == ["reports/study"] * 2 + ["reports/study-part"] * 5 + ["x", "reports/study"]


def test_each_experiment_gets_its_own_runs(monkeypatch, tmp_path):
    asked_for = {}
    monkeypatch.setattr(page, "write", lambda *_: None)
    monkeypatch.setattr(
        "benchmarks.study.__main__.side_by_side",
        lambda work, chosen, *_: asked_for.update({work.__name__: len(chosen)}) or [],
    )
    for typed, expected in (
        (["--experiments", "3"], {"tried": 24}),
        (["--experiments", "3", "--families", "AC"], {"tried": 8}),
        (["--experiments", "4"], {"asked": 30}),
        (["--experiments", "5"], {"begun": 108}),
        (["--experiments", "1", "--families", "D", "--seeds", "0"], {"analysed": 4}),
        (["--smoke"], {"analysed": 4, "tried": 1, "asked": 1, "begun": 1}),
    ):
        asked_for.clear()
        monkeypatch.setattr(sys, "argv", ["study", *typed, "--out", str(tmp_path)])
        main()
        assert asked_for == expected


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_smoke_study_runs_from_its_command_and_is_not_made_twice(tmp_path):
    def study() -> str:
        command = [sys.executable, "-m", "benchmarks.study", "--smoke", "--jobs", "1"]
        where = ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
        return subprocess.run(command + where, cwd=ROOT, check=True, capture_output=True, text=True).stderr

    first = study()
    text = (tmp_path / "out" / "README.md").read_text()
    assert "4/4" in first and "### D. SGD with momentum" in text
    assert "## Experiment 3" in text and "1 of them is exact against the run, 0 close" in text
    assert "never spoke in: bad batches" in text, "a bad batch has no precursor"
    marks = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    study()
    assert "What finds nan" in text or "Nothing surely finds nan" in text
    assert "## Experiment 5" in text and "R-post-L2-lr0.1-seed0" in first
    assert len(list((tmp_path / "cache" / "interventions").iterdir())) == 1
    assert marks == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert _numbers((tmp_path / "out" / "README.md").read_text()) == _numbers(text)


def _numbers(text: str) -> list[str]:
    # What it took and when is told below.
    tables, _, _ = text.partition("## How it was made")
    return [line for line in tables.splitlines() if line.startswith("|")]
