"""Plans: what a retraining would cost, counted and not done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from hnf_offline.errors import UsageError
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.rerun.planning import SEARCH_REPLAYS, affordable, plan_whatif, plan_zoom
from hnf_offline.rerun.zoom import Zoomed
from hnf_offline.run import open_run

SETTINGS = ProfileSettings(tier="stability", device="cpu", rows=12)


@pytest.mark.parametrize(("every", "trainings", "measured"), [(1, 2, 11), (4, 2, 4), (0, 1, 0)])
def test_a_zoom_is_counted(recorded: Path, tmp_path: Path, every: int, trainings: int, measured: int) -> None:
    plan = plan_zoom(
        open_run(recorded), start=10, stop=20, settings=SETTINGS, out=tmp_path / "o", every=every
    )
    assert (plan.start, plan.stop, plan.trainings, plan.measured) == (10, 20, trainings, measured)
    taken = 10 * trainings * plan.step_seconds + measured * plan.measure_seconds
    assert plan.seconds == pytest.approx(plan.opening_seconds + taken)
    assert min(plan.step_seconds, plan.measure_seconds, plan.opening_seconds) > 0
    assert plan.peak_bytes > 0
    assert (plan.device, plan.missing) == ("cpu", ())
    assert not (tmp_path / "o").exists()


def test_what_was_measured_is_not_counted_again(
    recorded: Path, tried: Callable[..., Zoomed], tmp_path: Path
) -> None:
    run, out = open_run(recorded), tmp_path / "out"
    tried(recorded, 10, 13, every=1, out=out)
    done = plan_zoom(run, start=10, stop=13, settings=SETTINGS, out=out)
    longer = plan_zoom(run, start=10, stop=15, settings=SETTINGS, out=out)
    other = plan_zoom(run, start=10, stop=13, settings=replace(SETTINGS, seed=1), out=out)
    assert (done.measured, longer.measured, other.measured) == (0, 2, 4)


def test_a_zoom_ends_with_the_batches(recorded: Path, tmp_path: Path) -> None:
    assert plan_zoom(open_run(recorded), start=30, stop=99, settings=SETTINGS, out=tmp_path).stop == 40


def test_a_whatif_is_counted(recorded: Path) -> None:
    plan = plan_whatif(
        open_run(recorded),
        start=10,
        steps=20,
        policies=("lr-scale=0.5", "clip=1"),
        settings=SETTINGS,
        every=10,
        twins=3,
        find_largest_stable=True,
    )
    assert plan.trainings == 1 + 3 + (3 + 1) + SEARCH_REPLAYS
    assert plan.measured == 3 * 3 + 1


def test_a_whatif_that_never_looks_costs_its_steps_only(recorded: Path) -> None:
    plan = plan_whatif(
        open_run(recorded), start=10, steps=10, policies=("clip=1",), settings=SETTINGS, every=0
    )
    assert (plan.trainings, plan.measured) == (3, 0)
    assert plan.seconds == pytest.approx(plan.opening_seconds + 30 * plan.step_seconds)


def test_a_policy_that_is_none_is_refused(recorded: Path) -> None:
    with pytest.raises(UsageError, match="no policy is called"):
        plan_whatif(open_run(recorded), start=10, steps=10, policies=("clop=1",), settings=SETTINGS)


def test_what_is_missing_is_said_beforehand(
    record: Callable[..., Path], record_dropout: Callable[..., Path], plant: SimpleNamespace, tmp_path: Path
) -> None:
    stateless, logless, dropping = record(), record(), record_dropout()
    plant.drop_state(stateless, 10)
    (logless / "log.jsonl").unlink()
    said = [
        plan_zoom(open_run(path), start=10, stop=12, settings=SETTINGS, out=tmp_path / "o").missing
        for path in (stateless, logless, dropping)
    ]
    assert [len(one) for one in said] == [1, 1, 1]
    for one, word in zip(said, ("optimizer state", "log", "dropout"), strict=True):
        assert word in one[0]


def test_a_small_run_is_zoomed_at_every_step_and_a_long_one_more_coarsely(recorded: Path) -> None:
    run = open_run(recorded)
    fineness = [affordable(run, SETTINGS, SETTINGS, steps) for steps in (1, 30, 10**6, 10**8)]
    every = [one.every for one in fineness]
    assert every[:2] == [1, 1]
    assert every == sorted(every)
    assert every[-1] > 1
    assert affordable(run, SETTINGS, SETTINGS, 10**8).every == every[-1]  # the same answer every time
