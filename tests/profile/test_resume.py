"""Interrupt it, run it again: nothing is measured twice and nothing is different."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from hnf_offline.profile import Profile, ProfileSettings, plan, profile_run
from hnf_offline.profile.settings import Progress
from hnf_offline.run import open_run

GRADIENT = ProfileSettings(tier="gradient")


def profile(run: Path, out: Path, settings: ProfileSettings = GRADIENT) -> Profile:
    return profile_run(open_run(run), settings, out)


def flip_last_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # the last bit of the last weight: its sign and size stay
    file.write_bytes(data)


def test_a_second_run_measures_nothing_and_gives_the_same(tiny: Path, tmp_path: Path) -> None:
    first = profile(tiny, tmp_path / "out")
    assert (first.computed, first.cached) == (6, 0)
    told: list[Progress] = []
    second = profile_run(open_run(tiny), GRADIENT, tmp_path / "out", on_progress=told.append)
    assert (second.computed, second.cached) == (0, 6)
    assert_frame_equal(first.table, second.table)
    assert_frame_equal(pl.read_parquet(tmp_path / "out" / "profile.parquet"), second.table)
    assert [(one.done, one.total, one.cached, one.seconds) for one in told] == [(6, 6, 6, 0.0)]


def test_the_time_of_a_file_is_nothing_its_bytes_are_everything(tiny: Path, tmp_path: Path) -> None:
    before = profile(tiny, tmp_path / "out")
    for file in tiny.rglob("*.safetensors"):
        os.utime(file, (1, 1))
    assert profile(tiny, tmp_path / "out").cached == 6
    flip_last_byte(tiny / "checkpoints" / "step-000012" / "model.safetensors")
    after = profile(tiny, tmp_path / "out")
    assert (after.computed, after.cached) == (1, 5)
    others = pl.col("step") != 12
    assert_frame_equal(before.table.filter(others), after.table.filter(others))
    assert not before.table.filter(~others).equals(after.table.filter(~others))
    # The optimizer state belongs to the checkpoint as much as the weights do.
    flip_last_byte(tiny / "checkpoints" / "step-000012" / "optimizer.safetensors")
    assert profile(tiny, tmp_path / "out").computed == 1


def test_other_settings_other_rows_or_another_model_are_measured_anew(tiny: Path, tmp_path: Path) -> None:
    assert profile(tiny, tmp_path / "out").computed == 6
    assert profile(tiny, tmp_path / "out", replace(GRADIENT, rows=8)).computed == 6
    assert profile(tiny, tmp_path / "out", ProfileSettings(tier="forward")).computed == 6
    (tiny / "run.toml").write_text("[optimizer]\nlr = 0.5\n")
    assert profile(tiny, tmp_path / "out", ProfileSettings(tier="forward")).computed == 6


def test_which_checkpoints_are_asked_for_changes_no_value(tiny: Path, tmp_path: Path) -> None:
    every_second = profile(tiny, tmp_path / "out", replace(GRADIENT, every=2))
    assert every_second.table["step"].unique().sort().to_list() == [4, 12, 20]
    between = profile(tiny, tmp_path / "out", replace(GRADIENT, first_step=12, last_step=20))
    assert (between.computed, between.cached) == (1, 2)
    assert between.table["step"].unique().sort().to_list() == [12, 16, 20]
    whole = profile(tiny, tmp_path / "out")
    assert (whole.computed, whole.cached) == (2, 4)
    assert_frame_equal(whole.table, profile(tiny, tmp_path / "elsewhere").table)


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "gone"])
def test_a_damaged_shard_is_measured_again(tiny: Path, tmp_path: Path, damage: str) -> None:
    before = profile(tiny, tmp_path / "out")
    shard = tmp_path / "out" / "profile" / "step-000016.parquet"
    data = shard.read_bytes()
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes({"cut": data[: len(data) // 2], "garbage": bytes(500), "empty": b""}[damage])
    after = profile(tiny, tmp_path / "out")
    assert (after.computed, after.cached) == (1, 5)
    assert_frame_equal(before.table, after.table)


def test_half_written_shards_are_never_taken_for_whole_ones(tiny: Path, tmp_path: Path) -> None:
    clean = profile(tiny, tmp_path / "clean")
    shards = tmp_path / "out" / "profile"
    shutil.copytree(tmp_path / "clean" / "profile", shards)
    (shards / "step-000008.parquet").rename(shards / ".step-000008.parquet.123.part")
    (shards / ".step-000012.parquet.9.part").write_bytes(b"PAR1")
    resumed = profile(tiny, tmp_path / "out")
    assert (resumed.computed, resumed.cached) == (1, 5)
    assert_frame_equal(resumed.table, clean.table)


def test_correcting_the_steps_of_the_batches_renews_the_check_against_the_log(
    tiny: Path, tmp_path: Path, rewrite: Callable[..., None]
) -> None:
    def steps_of(table: pl.DataFrame) -> list[str]:
        return table.filter(pl.col("step") == 8, pl.col("batch").str.starts_with("step "))["batch"].to_list()

    right = profile(tiny, tmp_path / "out")
    assert steps_of(right.table) == ["step 9"]
    rewrite(tiny / "batches.safetensors", lambda saved: {**saved, "steps": saved["steps"] + 3})
    wrong = profile(tiny, tmp_path / "out")
    assert wrong.computed == 6
    assert steps_of(wrong.table) == ["step 10", "step 8", "step 9"]


def test_rows_dealt_into_other_batches_are_measured_anew(tiny: Path, tmp_path: Path) -> None:
    settings = ProfileSettings(tier="gradient", rows=8)
    (tiny / "log.jsonl").unlink()  # no loss to check the steps against
    (tiny / "run.toml").write_text("[batches]\nsteps = 4\n")
    assert profile(tiny, tmp_path / "out", settings).computed == 6
    (tiny / "run.toml").write_text("[batches]\nsteps = 2\n")
    assert profile(tiny, tmp_path / "out", settings).computed == 6
    assert profile(tiny, tmp_path / "out", settings).computed == 0


def test_a_plan_counts_what_is_there_and_writes_nothing(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = open_run(tiny)
    before = plan(run, GRADIENT, out)
    assert not out.exists()
    assert (before.checkpoints, before.cached) == (6, 0)
    profile(tiny, out, replace(GRADIENT, every=2))
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert plan(run, GRADIENT, out).cached == 3
    assert plan(run, replace(GRADIENT, every=2), out).cached == 3
    assert plan(run, ProfileSettings(), out).cached == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == written


def command(run: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "hnf_offline", "profile", str(run), "--out", str(out), "--quiet"]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def shards_of(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "profile").glob("step-*.parquet")}


def test_a_killed_profile_goes_on_where_it_was(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(command(tiny, out), env=ENVIRONMENT)
    deadline = time.monotonic() + 60
    while len(shards_of(out)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was done before it could be killed"
    kept = shards_of(out)
    assert 2 <= len(kept) < 6
    assert not (out / "profile.parquet").exists()
    subprocess.run(command(tiny, out), env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
    after = shards_of(out)
    assert len(after) == 6
    assert {name: after[name] for name in kept} == kept, "what was there was not measured again"
    whole = profile(tiny, tmp_path / "whole", ProfileSettings())
    assert_frame_equal(pl.read_parquet(out / "profile.parquet"), whole.table)
    # The library finds what the command line measured.
    assert profile(tiny, out, ProfileSettings()).cached == 6
