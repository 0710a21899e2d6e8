from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest

from hnf_offline.run.logs import format_of, read_log
from hnf_offline.run.logs.blocks import Blocks


def rows(count: int) -> list[str]:
    return [json.dumps({"step": s, "loss": 1 / s, "lr": 1e-4}) + "\n" for s in range(1, count + 1)]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hnf_offline.run.logs.blocks._BLOCK", 1000)


@pytest.mark.usefixtures("small_blocks")
def test_odd_lines_in_any_block(tmp_path: Path) -> None:
    lines = rows(200)
    lines[50] = lines[50].replace("1e-04", "-Infinity").replace("0.0001", "-Infinity")
    lines[51] = '{"step": 52, "loss": NaN, "note": "NaN, or Infinity"}\n'
    lines[100] = "Traceback (most recent call last):\n"
    lines[101] = '{"step": 102, "loss": 0.5,}\n'
    lines[120] = '{"step": 121, "loss": {"total": 7}, "loss": 3.5}\n'
    lines[150] = '{"eval/loss": 9.5, "step": 150}\n'
    lines[160] = '{"step": 161, "loss": "0.25"}\r\n'
    lines[170] = '{"step": "171", "loss": 1' + "0" * 400 + "}\n"
    lines[180] = '{"st\\u0065p": 181, "loss": 0.125}\n'
    lines[190] = '\x00\x00{"step": 191, "loss": 0.5}\n'
    path = tmp_path / "log.jsonl"
    path.write_text("".join(lines)[:-6])
    log = read_log(path)
    losses = dict(zip(log.rows["step"], log.rows["loss"], strict=True))
    assert set(range(1, 201)) - set(losses) == {101, 102, 151, 200} and losses[171] is None
    assert math.isnan(losses[52] or 0) and losses[121] == 3.5 and losses[161] == 0.25
    assert losses[181] == 0.125 and losses[191] == 0.5 and losses[199] == 1 / 199
    assert log.rows["learning_rate"][50] == -math.inf and log.rows["eval/loss"].drop_nulls().to_list() == [
        9.5
    ]
    # The traceback, the comma before a brace, and the line that was cut off.
    assert log.skipped_lines == 3


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_encodings_and_line_endings(tmp_path: Path, encoding: str, ending: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes("".join(rows(100)).replace("\n", ending).encode(encoding))
    log = read_log(path)
    assert log.rows["step"].to_list() == list(range(1, 101)) and log.skipped_lines == 0
    assert log.rows["loss"].to_list() == [1 / s for s in range(1, 101)]


@pytest.mark.usefixtures("small_blocks")
def test_compressed_and_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl.gz"
    packed = gzip.compress("".join(rows(3000)).encode())
    path.write_bytes(packed)
    assert read_log(path).rows.height == 3000
    path.write_bytes(packed[: len(packed) // 2])
    log = read_log(path)
    assert 500 < log.rows.height < 2900 and "ends too early" in log.notes[0]


def test_nested_rows_read_as_their_flat_names(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    text = '{"_meta": {"deep": {"x": 1}}}\n'
    for step in range(1, 50):
        more = {"grad": {"norm": step / 4}} if step % 2 else {"grad": None}
        text += json.dumps({"step": step, "train": {"loss": 1.5, "n": 1}, "bins": [1, 2], **more}) + "\n"
    path.write_text(text)
    log = read_log(path)
    assert log.columns["loss"] == "train/loss" and log.columns["grad_norm"] == "grad/norm"
    assert log.rows["loss"].to_list() == [1.5] * 49 and log.rows["grad_norm"][2] == 0.75
    assert log.rows["grad_norm"][1] is None and log.skipped_lines == 0


def test_lines_after_text_and_in_a_file_of_any_name(tmp_path: Path) -> None:
    path = tmp_path / "output.log.1"
    path.write_text("starting\n" + "".join(rows(9)))
    log = read_log(path)
    assert format_of(path) == "jsonl" and log.rows.height == 9 and log.skipped_lines == 1


def test_a_million_names_are_not_a_million_columns(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(f'{{"step": {s}, "loss": 1.5, "k{s}": 1}}\n' for s in range(60_000)))
    log = read_log(path)
    assert log.rows.height == 60_000 and log.rows["loss"].null_count() == 0
    assert log.rows.width <= 2004 and "more columns than are read" in log.notes[0]
    one = {"step": 1, "loss": 2.5, **{f"k{n}": 1.0 for n in range(5000)}}
    path.write_text(json.dumps(one) + "\n")
    log = read_log(path)
    assert log.rows["loss"].to_list() == [2.5] and log.rows.width <= 2004


@pytest.mark.parametrize("depth", [100, 1000, 100_000])
def test_deep_lines_are_passed_over(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "log.jsonl"
    for opening, closing in (('{"a":', "}"), ("[", "]")):
        deep = '{"loss": ' + opening * depth + "1" + closing * depth + ', "step": 5}\n'
        hidden = '{"x": "' + "}" * depth + '", "loss": ' + opening * depth + "1" + closing * depth + "}\n"
        path.write_text("".join(rows(3)) + deep + hidden + "".join(rows(9)[3:]))
        assert read_log(path).rows["loss"].count() == 9


def test_a_line_without_an_end_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(
        "".join(rows(2)) + '{"step": 3, "loss": "' + "x" * 20_000_000 + '"}\n' + "".join(rows(4)[2:])
    )
    log = read_log(path)
    assert log.rows["step"].to_list() == [1, 2, 3, 4] and log.skipped_lines == 1
    assert max(map(len, Blocks(path))) < 10_000_000


def test_what_unpacks_to_very_much_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnf_offline.run.logs.lines._UNPACKED", 1_000_000)
    path = tmp_path / "log.jsonl.gz"
    path.write_bytes(gzip.compress(("".join(rows(5)) + '{"step": 5, "loss": 0.2}\n' * 2_000_000).encode()))
    log = read_log(path)
    assert log.rows.height == 5 and any("more text than is read" in note for note in log.notes)


def test_numbers_that_stand_for_nan_are_themselves(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 1.7418529630741853e303}\n{"step": 2, "loss": NaN}\n')
    values = read_log(path).rows["loss"].to_list()
    assert values[0] == 1.7418529630741853e303 and math.isnan(values[1])
