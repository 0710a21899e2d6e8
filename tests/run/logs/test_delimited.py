from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest

from hnf_offline.run.logs import read_log


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hnf_offline.run.logs.blocks._BLOCK", 500)


@pytest.mark.parametrize("separator", [",", "\t", ";"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_words_quotes_and_nan_in_any_block(tmp_path: Path, separator: str, ending: str) -> None:
    lines = [["step", "run name", "train/loss", "lr", "note"]]
    lines += [[str(s), "gpt-2", str(1 / s), "1e-4", ""] for s in range(1, 201)]
    lines[50][2], lines[60][2], lines[70][2] = "nan", "-Infinity", " 7.5 "
    lines[80] = ["80", '"a name\nin two lines"', "8.5", "", ""]
    lines[90] = ["oops"]
    lines[100][4] = "spike?"
    lines[110] = [""]
    lines[120] = ["120", "x"]
    path = tmp_path / ("log.tsv" if separator == "\t" else "log.csv")
    path.write_text(
        ending.join(separator.join(line) for line in lines) + ending + "201" + separator, newline=""
    )
    log = read_log(path)
    losses = dict(zip(log.rows["step"], log.rows["loss"], strict=True))
    assert set(range(1, 202)) - set(losses) == {90, 110, 201}
    assert math.isnan(losses[50] or 0) and losses[60] == -math.inf and losses[70] == 7.5 and losses[80] == 8.5
    assert losses[120] is None and losses[200] == 1 / 200 and log.rows["learning_rate"][79] is None
    assert log.skipped_lines == 2


def test_remarks_above_and_a_header_behind_a_hash(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("# made by a script\n\n#step\tloss\n1\t2.5\n2\t2.25\n")
    with pytest.raises(Exception, match="no log of a known format"):
        read_log(path)
    path = path.rename(tmp_path / "log.csv")
    assert read_log(path).rows["loss"].to_list() == [2.5, 2.25]


def test_told_by_its_header_in_a_file_of_any_name(tmp_path: Path) -> None:
    path = tmp_path / "progress.dat"
    path.write_text("iteration,loss,lr\n1,2.5,\n2,2.25,0.1\n")
    log = read_log(path)
    assert log.formats == ("delimited",) and log.rows["learning_rate"].to_list() == [None, 0.1]


def test_decimal_commas(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step;loss\n1;2,5\n2;-0,25\n3;1e-3\n")
    assert read_log(path).rows["loss"].to_list() == [2.5, -0.25, 1e-3]


def test_same_names_and_none(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(",step,loss,loss\n0,1,2.5,9\n1,2,2.25,9\n")
    log = read_log(path)
    assert log.rows["loss"].to_list() == [2.5, 2.25] and log.rows["loss (4)"].to_list() == [9.0, 9.0]


def test_compressed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv.gz"
    path.write_bytes(
        gzip.compress(("step,loss\n" + "".join(f"{s},{1 / s}\n" for s in range(1, 5000))).encode())
    )
    assert read_log(path).rows.height == 4999
    path.write_bytes(path.read_bytes()[:-3000])
    log = read_log(path)
    assert 100 < log.rows.height < 4999 and "ends too early" in log.notes[0]


def test_a_short_line_below_a_wide_header_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,loss," + ",".join(f"k{n}" for n in range(5000)) + "\n" + "1,2\n" * 20_000)
    log = read_log(path)
    assert log.rows["loss"].to_list() == [2.0] and log.rows.width <= 2004
    assert "the first 2,000 were read" in log.notes[0]


def test_a_lone_quote_does_not_swallow_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text('step,loss,note\n1,2.5,"\n' + "".join(f"{s},{s},x\n" for s in range(2, 100)))
    log = read_log(path)
    assert log.rows.height >= 98 and log.rows["loss"][-1] == 99.0
