"""Zooms: what is measured, that it goes on where it was stopped, and that nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from hnf_offline.errors import InputError, UsageError
from hnf_offline.profile.settings import Progress
from hnf_offline.rerun.zoom import Zoomed
from hnf_offline.retraining import EXACT, NOT_REPRODUCIBLE
from hnf_offline.table import table

Record = Callable[..., Path]
Tried = Callable[..., Zoomed]


def measured(told: list[Progress]) -> list[int]:
    """Steps that were measured, not taken from an earlier zoom."""
    done = [one for one in told if one.done]
    before = [0, *(one.cached for one in done)]
    return [one.step for one, cached in zip(done, before, strict=False) if one.cached == cached]


def test_every_step_is_measured_and_said_to_come_from_a_zoom(recorded: Path, tried: Tried) -> None:
    zoomed = tried(recorded, 10, 14, every=1)
    assert zoomed.table.schema == table().schema
    assert zoomed.table["step"].unique().sort().to_list() == [10, 11, 12, 13, 14]
    assert zoomed.table["source"].unique().to_list() == ["zoom"]
    arm = zoomed.retraining.arms[0]
    assert arm.policy == "as was"
    assert arm.steps == (11, 12, 13, 14)
    assert arm.stability_steps == (10, 11, 12, 13, 14)
    assert all(ratio > 0 for ratio in arm.stability_ratio)


def test_the_last_step_is_measured_whatever_the_grid(recorded: Path, tried: Tried) -> None:
    zoomed = tried(recorded, 10, 15, every=3)
    assert zoomed.table["step"].unique().sort().to_list() == [10, 13, 15]


def test_zoomed_checkpoints_have_the_values_of_a_zoom_begun_there(recorded: Path, tried: Tried) -> None:
    through, there = tried(recorded, 10, 22, every=10), tried(recorded, 20, 22, every=2)
    key = ["quantity", "layer"]
    whole = [frame.table.filter(pl.col("step") == 20).sort(key) for frame in (through, there)]
    assert_frame_equal(*whole, rel_tol=1e-4)


def test_nothing_is_measured_where_it_is_not_the_run(
    record: Record, plant: SimpleNamespace, tried: Tried, tmp_path: Path
) -> None:
    path = record()
    plant.drop_state(path, 10)
    zoomed = tried(path, 10, 14, every=1, out=tmp_path / "none")
    assert zoomed.retraining.reproduction.word == NOT_REPRODUCIBLE
    assert zoomed.table.height == 0
    assert not list((tmp_path / "none").rglob("*.parquet"))
    twins = zoomed.retraining.twins
    assert twins is not None
    assert (twins.kind, twins.count, twins.lyapunov_rate) == ("statistical", 3, None)


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_zoom_goes_on_where_it_stopped(
    recorded: Path, tried: Tried, tmp_path: Path, after: int
) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tried(recorded, 10, 14, every=1, out=tmp_path / "cut", on_progress=interrupt)
    told: list[Progress] = []
    resumed = tried(recorded, 10, 14, every=1, out=tmp_path / "cut", on_progress=told.append)
    assert measured(told) == list(range(10 + after, 15))
    whole = tried(recorded, 10, 14, every=1)
    assert_frame_equal(resumed.table, whole.table)
    assert_frame_equal(pl.read_parquet(tmp_path / "cut" / "profile.parquet"), whole.table)


def test_a_longer_zoom_takes_up_a_shorter_one(recorded: Path, tried: Tried, tmp_path: Path) -> None:
    told: list[Progress] = []
    tried(recorded, 10, 12, every=1, out=tmp_path / "out")
    tried(recorded, 10, 14, every=1, out=tmp_path / "out", on_progress=told.append)
    assert measured(told) == [13, 14]


def test_a_changed_rate_of_the_log_is_measured_anew_from_there_on(
    record: Record, plant: SimpleNamespace, tried: Tried, tmp_path: Path
) -> None:
    def change(lines: list[dict[str, float]]) -> list[dict[str, float]]:
        lines[12]["learning_rate"] *= 1.0001
        return lines

    path = record()
    told: list[Progress] = []
    tried(path, 10, 14, every=1, out=tmp_path / "out")
    plant.log(path, change)
    tried(path, 10, 14, every=1, out=tmp_path / "out", on_progress=told.append)
    # S of step 12 is measured with the rate of update 13.
    assert measured(told) == [12, 13, 14]


def test_another_recipe_is_measured_anew(record: Record, tried: Tried, tmp_path: Path) -> None:
    path = record()
    told: list[Progress] = []
    tried(path, 10, 12, every=1, out=tmp_path / "out")
    (path / "run.toml").write_text("[optimizer]\nmax_grad_norm = 1e6\n")  # clips nothing: still exact
    again = tried(path, 10, 12, every=1, out=tmp_path / "out", on_progress=told.append)
    assert measured(told) == [10, 11, 12]
    assert again.retraining.reproduction.word == EXACT


def test_another_weight_decay_in_run_toml_is_measured_anew(
    record: Record, tried: Tried, tmp_path: Path
) -> None:
    path = record()
    told: list[Progress] = []
    tried(path, 10, 13, every=1, out=tmp_path / "out")
    (path / "run.toml").write_text("[optimizer]\nweight_decay = 0.0101\n")  # as good as the saved 0.01
    tried(path, 10, 13, every=1, out=tmp_path / "out", on_progress=told.append)
    assert measured(told) == [10, 11, 12, 13]


def test_nothing_is_written_but_below_out(
    record: Record, plant: SimpleNamespace, tried: Tried, tmp_path: Path
) -> None:
    path = record(clip=0.5)
    before = plant.content(tmp_path)
    tried(path, 10, 12, every=1, twins=2, out=tmp_path / "out")
    after = plant.content(tmp_path)
    assert {name: after[name] for name in before} == before
    assert all(name.startswith("out/") for name in after.keys() - before.keys())
    assert not [name for name in after if name.endswith(".part")]


def test_it_ends_where_the_batches_do(recorded: Path, tried: Tried) -> None:
    done = tried(recorded, 30, 500).retraining
    assert (done.stop, done.arms[0].steps[-1]) == (40, 40)


@pytest.mark.parametrize(("start", "stop"), [(10, 10), (20, 10)])
def test_no_stretch_is_refused(recorded: Path, tried: Tried, start: int, stop: int) -> None:
    with pytest.raises(UsageError, match="is not after"):
        tried(recorded, start, stop)


def test_no_checkpoint_there_is_refused(recorded: Path, tried: Tried) -> None:
    with pytest.raises(UsageError, match="no checkpoint of step 15") as caught:
        tried(recorded, 15, 20)
    assert "10, 20" in caught.value.remedy


def test_no_batches_there_is_refused(recorded: Path, tried: Tried) -> None:
    with pytest.raises(InputError, match="batch of step 41"):
        tried(recorded, 40, 50)
