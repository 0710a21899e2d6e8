"""Runs at an address: the same as on disk, two checkpoints at a time."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import torch

from hnf_offline.cli import main
from hnf_offline.errors import InputError, spelled
from hnf_offline.profile.run import profile_run
from hnf_offline.run import open_run
from hnf_offline.run.batches import load_rows
from hnf_offline.run.formats import load_optimizer, load_weights
from hnf_offline.run.remote import close_all

fsspec = pytest.importorskip("fsspec")

from .conftest import (  # noqa: E402
    ROWS,
    SETTINGS,
    STEPS,
    Far,
    bytes_of_a_checkpoint,
    in_another_layout,
    recorded,
    same,
    upload,
)


def test_the_report_of_a_far_run_has_the_same_table_with_two_checkpoints_on_disk(
    tiny: Path, tmp_path: Path, usage: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tier", "gradient", "--device", "cpu", "--zoom", "off", "--json", "--out"]
    assert main(["report", str(tiny), *options, str(tmp_path / "near")]) == 0
    near = json.loads(capsys.readouterr().out)
    address = upload(tiny, "bucket/tiny")
    size = bytes_of_a_checkpoint(open_run(tiny))
    assert main(["report", address, *options, str(tmp_path / "far")]) == 0
    far = json.loads(capsys.readouterr().out)
    tables = [pl.read_parquet(tmp_path / name / "profile.parquet") for name in ("near", "far")]
    assert tables[0].height > 50 and tables[0].equals(tables[1])
    # What compares whole files is left to the checks that may take long.
    checked = {"checked": far["run"].get("checked")}
    assert far["run"] == {**near["run"], **checked, "path": address} and far["spikes"] == near["spikes"]
    assert "temporary" not in (tmp_path / "far" / "index.html").read_text(encoding="utf-8")
    # Blocks, headers and batches take some more than the files' own bytes.
    assert 0 < usage["bytes"] <= 2 * size + 64 * 1024 < 3 * size
    assert usage["fetches"] == 5 * 2, "every file of every checkpoint once"


@pytest.mark.parametrize("layout", ["recorded", "hf_trainer", "nanogpt", "dcp", "legacy"])
def test_every_layout_is_read_equal_over_the_network(
    tmp_path: Path, usage: dict[str, int], layout: str
) -> None:
    folder = tmp_path / "run"
    near = open_run(recorded(folder) if layout == "recorded" else in_another_layout(folder, layout))
    far = open_run(upload(folder, f"bucket/{layout}"))
    assert [point.step for point in far.checkpoints] == [4, 8, 12, 16, 20]
    assert far.configuration == near.configuration and far.configuration
    assert far.missing == near.missing and far.skipped == near.skipped == ()
    assert far.log is not None and near.log is not None and far.log.rows.equals(near.log.rows)
    assert far.batches is not None and near.batches is not None
    rows = far.batches.rows_of_step(7)
    assert len(rows) == ROWS and torch.equal(
        load_rows(far.batches, rows)[0], load_rows(near.batches, rows)[0]
    )
    held = []
    for mine, theirs in zip(far.checkpoints, near.checkpoints, strict=True):
        held.append(load_weights(mine))
        assert same(held[-1], load_weights(theirs))
        state, saved = load_optimizer(mine), load_optimizer(theirs)
        assert state is not None and saved is not None
        assert same(dict(state.state), dict(saved.state)) and same(state.groups, saved.groups)
    # What was handed out stays what it was, although its files are gone from this disk by now.
    assert all(
        same(weights, load_weights(point)) for weights, point in zip(held, near.checkpoints, strict=True)
    )
    assert 0 < usage["bytes"] <= 2 * bytes_of_a_checkpoint(near) + 128 * 1024


def test_opening_reads_descriptions_only(tiny: Path) -> None:
    total = sum(file.stat().st_size for file in tiny.rglob("*.safetensors"))
    run = open_run(upload(tiny, "bucket/tiny"))
    there = sum(file.stat().st_blocks * 512 for file in run.path.rglob("*.safetensors"))
    assert len(run.checkpoints) == 5 and there < total / 3


def test_a_second_report_measures_nothing_again_and_a_changed_checkpoint_is_noticed(
    tiny: Path, tmp_path: Path
) -> None:
    address, out = upload(tiny, "bucket/tiny"), tmp_path / "out"
    assert profile_run(open_run(address), SETTINGS, out).computed == 5
    close_all()
    Far.read_bytes.clear()
    again = profile_run(open_run(address), SETTINGS, out)
    assert (again.computed, again.cached) == (0, 5)
    files = fsspec.filesystem("far")
    weights = "/bucket/tiny/checkpoints/step-000012/model.safetensors"
    files.pipe_file(weights, files.cat_file("/bucket/tiny/checkpoints/step-000016/model.safetensors"))
    close_all()
    assert profile_run(open_run(address), SETTINGS, out).computed == 1
    Far.timeless = True
    close_all()
    assert profile_run(open_run(address), SETTINGS, out).computed == 5, "nothing tells what changed"


def test_a_checkpoint_that_cannot_be_fetched_is_skipped_and_named_by_its_address(
    tiny: Path, tmp_path: Path
) -> None:
    Far.broken = {"step-000012/model"}
    address = upload(tiny, "bucket/tiny")
    run = open_run(address)
    profile = profile_run(run, SETTINGS, tmp_path / "out")
    assert profile.computed == 4 and len(profile.skipped) == 1
    with pytest.raises(InputError) as caught:
        load_weights(run.checkpoints[2])
    place = f"{address}/checkpoints/step-000012/model.safetensors"
    assert str(caught.value).startswith(f"{place}: cannot be read (ConnectionResetError: the line)")
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_named_by_its_address(tiny: Path) -> None:
    file = tiny / "checkpoints" / "step-000012" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    for remark in (upload(tiny, "bucket/tiny"),):
        (skipped,) = open_run(remark).skipped
        error = str(InputError(skipped.reason, path=skipped.path))
        assert error.startswith("far://bucket/tiny/checkpoints/step-000012/model.safetensors: is truncated")


def test_one_log_file_at_an_address(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = upload(tiny, "bucket/tiny")
    run = open_run(f"{address}/log.jsonl")
    assert spelled(run.path) == f"{address}/log.jsonl"
    assert run.log is not None and run.log.rows.height == STEPS and run.checkpoints == ()
    assert main(["spikes", f"{address}/log.jsonl", "--json"]) == 0
    capsys.readouterr()


def test_a_token_file_that_a_manifest_names_is_fetched_for_its_rows(tiny: Path, tmp_path: Path) -> None:
    import numpy as np

    (tiny / "batches.safetensors").unlink()
    np.arange(1000, dtype=np.uint16).tofile(tiny / "train.bin")
    np.save(tiny / "starts.npy", np.arange(80) * 7)
    (tiny / "run.toml").write_text('[batches]\nfile = "train.bin"\nstarts = "starts.npy"\nlength = 8\n')
    run = open_run(upload(tiny, "bucket/tiny"))
    assert run.batches is not None
    assert load_rows(run.batches, [3])[0].tolist() == [list(range(21, 29))]
