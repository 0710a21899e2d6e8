"""A shard is used again exactly where nothing that decides its values has changed."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from hnf_offline.errors import InputError
from hnf_offline.profile import shards
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.profile.shards import (
    content_hash,
    join_shards,
    read_shard,
    settings_key,
    shard_path,
    write_parquet,
    write_shard,
)
from hnf_offline.run.records import Checkpoint
from hnf_offline.table import Row, table

ROWS = [
    Row(7, "a", "other", 0, "gradient.norm", 1.5, batch="b"),
    Row(7, "", "model", -1, "gradient.norm", math.nan),
    Row(7, "", "model", -1, "hessian.lambda_max", math.inf, -1.0, 2.0, False, "b"),
]


def test_the_hash_is_of_the_content_not_of_the_time(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(1000))
    before = content_hash([file])
    os.utime(file, (1, 1))
    assert content_hash([file]) == before
    for place in (0, 500, 999):
        data = bytearray(1000)
        data[place] = 1
        file.write_bytes(data)
        assert content_hash([file]) != before, place
    file.write_bytes(bytes(1001))
    assert content_hash([file]) != before


def test_where_one_file_ends_and_the_next_begins_matters(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"ab")
    second.write_bytes(b"c")
    before = content_hash([first, second])
    first.write_bytes(b"a")
    second.write_bytes(b"bc")
    assert content_hash([first, second]) != before


def test_of_huge_files_both_ends_and_the_size_are_always_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "WHOLE_BYTES", 10_000)
    monkeypatch.setattr(shards, "_CHUNK", 64)
    file = tmp_path / "weights"
    size = 100_000
    file.write_bytes(bytes(size))
    before = content_hash([file])
    for place in (0, 63, size - 64, size - 1):
        data = bytearray(size)
        data[place] = 1
        file.write_bytes(data)
        assert content_hash([file]) != before, place
    file.write_bytes(bytes(size + 1))
    assert content_hash([file]) != before
    # What a training step does: everything changes a little.
    file.write_bytes(bytes([1]) * size)
    assert content_hash([file]) != before


@pytest.mark.parametrize(
    "change",
    [
        {"tier": "gradient"},
        {"layers": "*.mlp.*"},
        {"dtype": "float64"},
        {"rows": 3},
        {"accuracy": "screen"},
        {"accuracy": "certified"},
        {"seed": 1},
        {"koopman": True},
    ],
    ids=str,
)
def test_settings_that_change_values_change_the_key(change: dict[str, Any]) -> None:
    settings = ProfileSettings()
    assert settings_key(replace(settings, **change), ("data",)) != settings_key(settings, ("data",))


@pytest.mark.parametrize(
    "change",
    [{"every": 3}, {"first_step": 5}, {"last_step": 9}, {"device": "cuda"}, {"replay": Path("moved.npz")}],
    ids=str,
)
def test_settings_that_only_choose_checkpoints_do_not(change: dict[str, Any]) -> None:
    settings = ProfileSettings()
    assert settings_key(replace(settings, **change), ("data",)) == settings_key(settings, ("data",))


def test_other_rows_another_model_or_another_version_change_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ProfileSettings()
    before = settings_key(settings, ("model", "rows"))
    assert settings_key(settings, ("model", "other rows")) != before
    assert settings_key(settings, ("other model", "rows")) != before
    monkeypatch.setattr("hnf_offline.__version__", "99.0", raising=False)
    assert settings_key(settings, ("model", "rows")) != before


def test_a_shard_comes_back_as_it_was_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = shard_path(tmp_path / "new" / "profile", Checkpoint(7, tmp_path, "any", ()))
    written = write_shard(path, ROWS, "key")
    read = read_shard(path, "key")
    assert read is not None
    assert_frame_equal(read, written)
    assert_frame_equal(read, table(ROWS))
    assert math.isnan(read["value"][0]) and read["value"][1] == math.inf
    assert [entry.name for entry in path.parent.iterdir()] == ["step-000007.parquet"]


def test_a_shard_of_another_key_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "step-000007.parquet"
    write_shard(path, ROWS, "key")
    assert read_shard(path, "other") is None
    assert read_shard(tmp_path / "absent.parquet", "key") is None
    table(ROWS).write_parquet(path)  # somebody else's file of the same name
    assert read_shard(path, "key") is None


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_shard_that_was_cut_off_is_not_used(tmp_path: Path, share: float) -> None:
    path = tmp_path / "step-000007.parquet"
    write_shard(path, ROWS, "key")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert read_shard(path, "key") is None


@pytest.mark.parametrize("place", range(0, 1400, 97))
def test_a_shard_with_flipped_bytes_is_read_or_refused_but_never_breaks(tmp_path: Path, place: int) -> None:
    path = tmp_path / "step-000007.parquet"
    write_shard(path, ROWS, "key")
    data = bytearray(path.read_bytes())
    start = place % len(data)
    for offset in range(start, min(start + 16, len(data))):
        data[offset] ^= 0xFF
    path.write_bytes(data)
    read = read_shard(path, "key")
    assert read is None or isinstance(read, pl.DataFrame)


def test_a_folder_that_cannot_be_written_is_named_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="cannot write") as error:
        write_parquet(tmp_path / "out" / "profile.parquet", table(ROWS))
    assert "--out" in str(error.value.remedy)


def test_shards_are_joined_in_the_order_of_the_table() -> None:
    later, earlier = table([replace(row, step=9) for row in ROWS]), table(ROWS)
    joined = join_shards([later, earlier])
    assert joined["step"].to_list() == [7, 7, 7, 9, 9, 9]
    assert_frame_equal(joined, join_shards([earlier, later]))
    assert join_shards([]).columns == table().columns


def test_asking_for_modes_measures_only_where_they_are_missing() -> None:
    full = ProfileSettings(tier="full")
    assert settings_key(full, ()) == settings_key(replace(full, koopman=True), ()), "full has them by itself"
