from __future__ import annotations

import contextlib
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnf_offline.errors import InputError
from hnf_offline.run import open_run
from hnf_offline.run.logs import format_of, read_log
from hnf_offline.run.logs.wandb_folder import read
from hnf_offline.run.logs.wire import fields


def rows(first: int, last: int, add: float = 0.0) -> list[dict[str, Any]]:
    return [
        {"_step": s - 1, "train/global_step": s, "train/loss": 3 - s / 100 + add}
        for s in range(first, last + 1)
    ]


def test_history_is_read_with_nested_keys_and_odd_numbers(tmp_path: Path, make_logs: Any) -> None:
    file = make_logs.wandb_run(
        tmp_path / "wandb" / "offline-run-20250101_000000-abc",
        [
            {"_step": 0, "train/loss": 3.5, "optimizer//group//lr": 0.1, "trainer/global_step": 10},
            {"_step": 1, "picture": {"_type": "image-file", "size": 5}, "text": "words", "list": [1, 2]},
            {"_step": 2, "train/loss": math.nan, "trainer/global_step": 20, "inner": {"a": {"b": 4}}},
            {"_step": 3, "train/loss": "Infinity", "trainer/global_step": 30},
        ],
    )
    for path in (file, file.parent, tmp_path / "wandb", tmp_path):
        log = open_run(path).log
        assert log is not None and log.rows["step"].to_list() == [10, 20, 30]
        assert (
            log.rows["loss"][0] == 3.5 and math.isnan(log.rows["loss"][1]) and log.rows["loss"][2] == math.inf
        )
        assert log.rows["optimizer/group/lr"].to_list() == [0.1, None, None]
        assert log.rows["inner/a/b"].to_list() == [None, 4.0, None]
        assert not {"picture/size", "text", "list"} & set(log.rows.columns)
        assert log.skipped_lines == 0 and log.columns["step"] == "trainer/global_step"


def test_records_longer_than_a_block_and_blocks_without_room(tmp_path: Path, make_logs: Any) -> None:
    long = make_logs.history({"_step": 0, "loss": 1.0, "text": "x" * 70_000})
    # Each length shifts where the block ends: in a record, in its header, and just before it.
    for length in range(32_700, 32_768, 3):
        padded = make_logs.history({"_step": 0, "loss": 1.0, "text": "y" * length})
        file = tmp_path / f"run-{length}.wandb"
        file.write_bytes(make_logs.wandb_bytes([padded, make_logs.history({"_step": 1, "loss": 2.0}), long]))
        raw = read(file)
        assert raw.frame["loss"].to_list() == [1.0, 2.0, 1.0] and raw.skipped_lines == 0


def test_a_damaged_block_loses_only_itself(tmp_path: Path, make_logs: Any) -> None:
    whole = make_logs.wandb_bytes([make_logs.history(row | {"pad": "z" * 300}) for row in rows(1, 400)])
    broken = bytearray(whole)
    broken[40_000] ^= 1
    file = tmp_path / "run-abc.wandb"
    file.write_bytes(bytes(broken))
    log = read_log(file)
    steps = log.rows["step"].to_list()
    assert log.skipped_lines >= 1 and steps[0] == 1 and steps[-1] == 400
    assert 300 < len(steps) < 400
    file.write_bytes(whole[:-5])
    cut = read_log(file)
    assert cut.rows["step"].to_list() == list(range(1, 400)) and cut.skipped_lines == 1
    file.write_bytes(whole + b"\0" * 500)
    assert read_log(file).skipped_lines == 0


def test_a_resumed_run_is_one_and_two_runs_are_two(tmp_path: Path, make_logs: Any) -> None:
    make_logs.wandb_run(tmp_path / "wandb" / "run-20250101_000000-abc", rows(1, 30))
    second = make_logs.wandb_run(tmp_path / "wandb" / "run-20250102_000000-abc", rows(26, 60, add=0.5))
    (tmp_path / "wandb" / "latest-run").symlink_to(second.parent.name)
    for path in (tmp_path / "wandb", tmp_path):
        log = open_run(path).log
        assert log is not None and log.rows["step"].to_list() == list(range(1, 61))
        assert log.restarts == (26,) and log.duplicates == 5
        assert log.rows["loss"][25] == 3 - 0.26 + 0.5
    latest = open_run(tmp_path / "wandb" / "latest-run").log
    assert latest is not None and latest.rows.height == 35
    make_logs.wandb_run(tmp_path / "wandb" / "run-20250103_000000-other", rows(1, 60, add=1.0))
    with pytest.raises(InputError, match=r"3 W&B runs: run-20250101_000000-abc, .*-other; name one of them"):
        read_log(tmp_path / "wandb")
    with pytest.raises(InputError, match=r"logs of the same steps: wandb/run-20250101.*run\.toml"):
        open_run(tmp_path)


def test_without_history_what_was_printed_is_read(tmp_path: Path, make_logs: Any) -> None:
    file = make_logs.wandb_run(tmp_path / "wandb" / "offline-run-20250101_000000-abc", [])
    printed = file.parent / "files" / "output.log"
    printed.parent.mkdir()
    printed.write_text("".join(f'{{"step": {s}, "loss": {4 - s / 10}}}\n' for s in range(1, 8)))
    log = read_log(file.parent)
    assert log.rows["step"].to_list() == list(range(1, 8))
    raw = read(file.parent)
    assert raw.notes == ("run-abc.wandb holds no history, so what the run printed was read instead.",)
    printed.unlink()
    (tmp_path / "secret.jsonl").write_text('{"step": 1, "loss": 2}\n')
    printed.symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(InputError, match="holds no history"):
        read(file.parent)


def test_a_hostile_length_is_not_believed(tmp_path: Path, make_logs: Any) -> None:
    # A field that claims four gigabytes, a number without end, a group; in frames whose check sums are right.
    bad = [b"\x12\xff\xff\xff\xff\x0f", b"\x12" + b"\xff" * 40, b"\x13abc", b"\x09abc"]
    file = tmp_path / "run-abc.wandb"
    file.write_bytes(make_logs.wandb_bytes([*bad, make_logs.history({"_step": 1, "loss": 2.0})]))
    raw = read(file)
    assert raw.skipped_lines == len(bad) and raw.frame["loss"].to_list() == [2.0]
    endless = b":W&B\xe1\xbe\x00" + make_logs.chunk(2, b"a" * 32_754)
    endless += make_logs.chunk(3, b"a" * 32_761) * 600
    file.write_bytes(endless)
    with pytest.raises(InputError, match="holds no history"):
        read(file)


@pytest.mark.parametrize("content", [b"", b":W&B", b":W&B\xe1\xbe\x01" + b"x" * 50, b"nothing of the kind"])
def test_what_is_no_wandb_file_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "run-abc.wandb"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read(file)
    assert caught.value.path == file and caught.value.remedy


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_crash_the_field_reader(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert all(len(part) <= len(content) for _, part in fields(content))


def test_fields_come_back_as_written() -> None:
    message = b"\x08\x96\x01" + b"\x12\x03abc" + b"\x1d" + struct.pack("<f", 1) + b"\x82\x01\x01z"
    assert list(fields(message)) == [(2, b"abc"), (16, b"z")]


def test_a_folder_of_text_is_no_wandb_run(tmp_path: Path) -> None:
    (tmp_path / "wandb" / "run-notes").mkdir(parents=True)
    assert format_of(tmp_path / "wandb") is None
