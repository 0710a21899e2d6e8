"""Hostile runs by the hundred, and by the ten thousand in the slow suite: nothing of them is run, nothing hangs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from . import crew, mutations, specials, specimens

#: `HNF_HOSTILE_CASES=100000 pytest -m slow tests/hostile` for a longer run.
MANY = int(os.environ.get("HNF_HOSTILE_CASES", "10000"))
SOME = 200


def test_a_case_is_the_same_every_time(tmp_path: Path) -> None:
    for number in (0, 17, 4711, 123_456):
        first, again = (mutations.case(number) for _ in range(2))
        assert (first.what, first.files, first.target) == (again.what, again.files, again.target)
    outside = tmp_path / "outside"
    outside.mkdir()
    case = mutations.case(5)
    target = case.plant(tmp_path / "run", outside)
    assert target.is_relative_to(tmp_path / "run")


def test_every_specimen_and_kind_of_damage_comes_up() -> None:
    cases = [mutations.case(number) for number in range(2 * len(specimens.names()) * 5)]
    assert {case.specimen for case in cases} == set(specimens.names())
    assert {case.kind for case in cases} == set(mutations.KINDS)


def test_every_run_made_by_hand_can_be_made(tmp_path: Path) -> None:
    for name in specials.names():
        if not name.startswith("JSON in"):  # those of 45 MB; the slow test makes them
            case = specials.case(specials.numbers(name)[0], str(tmp_path / "canary"))
            assert case.files or case.acts
    assert not (tmp_path / "canary").exists()


@pytest.mark.timeout(280)
def test_some_hundred_hostile_runs(tmp_path: Path) -> None:
    # The first are those of the slow suite; the last digit decides what goes through the command line.
    results = crew.run(0, SOME, tmp_path / "room")
    assert len(results) == SOME
    failures = crew.Tally.of(results).failures
    assert not failures, crew.told(failures)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_hostile_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = crew.run(SOME, SOME + MANY, tmp_path / "room")
    with capsys.disabled():
        print(f"\n{crew.table(results)}")
    assert len(results) == MANY
    failures = crew.Tally.of(results).failures
    assert not failures, crew.told(failures)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_hostile_runs_made_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stop = specials.FIRST + 2 * len(specials.names())
    results = crew.run(specials.FIRST, stop, tmp_path / "room")
    with capsys.disabled():
        print(f"\n{crew.table(results)}")
    assert len(results) == stop - specials.FIRST
    failures = crew.Tally.of(results).failures
    assert not failures, crew.told(failures)
