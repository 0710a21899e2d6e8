from __future__ import annotations

from pathlib import Path

import pytest

from hnf_offline.run.logs import read_log


def table(path: Path, steps: list[int], value: float = 1.0) -> Path:
    path.write_text("step,loss\n" + "".join(f"{step},{value + step / 1e6}\n" for step in steps))
    return path


def test_segments_of_a_file_and_of_files(tmp_path: Path) -> None:
    first = table(tmp_path / "a.csv", [*range(1, 101), *range(81, 121)])
    second = table(tmp_path / "b.csv", list(range(111, 201)), 2.0)
    log = read_log([second, first])
    assert [(one.file, one.first, one.last, one.rows, one.replaced) for one in log.segments] == [
        (first, 1, 100, 100, 20),
        (first, 81, 120, 40, 10),
        (second, 111, 200, 90, 0),
    ]
    assert log.restarts == (81, 111) and log.duplicates == 30 and log.formats == ("delimited",)


def test_a_log_in_order_is_one_segment(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,loss,eval_loss\n1,5,\n2,4,\n2,,9\n2,,8\n3,3,\n3,2,\n")
    log = read_log(path)
    assert log.rows["loss"].to_list() == [5.0, 4.0, 2.0] and log.rows["eval_loss"].to_list() == [
        None,
        8.0,
        None,
    ]
    assert [(one.first, one.last, one.rows, one.replaced) for one in log.segments] == [(1, 3, 3, 0)]
    assert log.duplicates == 1 and log.restarts == ()


def test_what_several_processes_printed_is_no_restart(tmp_path: Path) -> None:
    path = tmp_path / "out.log"
    said = [step for start in range(1, 101, 10) for _ in range(4) for step in range(start, start + 10)]
    path.write_text("".join(f"step={step} loss={step / 8}\n" for step in said))
    log = read_log(path)
    assert log.rows["step"].to_list() == list(range(1, 101)) and log.restarts == ()
    assert log.duplicates == 300 and len(log.segments) == 1


def test_a_run_that_repeats_its_steps_exactly_was_still_started_again(tmp_path: Path) -> None:
    log = read_log(table(tmp_path / "log.csv", [*range(1, 101), *range(51, 151), *range(101, 201)]))
    assert log.restarts == (51, 101) and log.duplicates == 100


def test_a_header_in_the_middle(tmp_path: Path) -> None:
    path = table(tmp_path / "log.csv", list(range(1, 50)))
    path.write_text(path.read_text() + table(tmp_path / "again.csv", list(range(40, 60))).read_text())
    log = read_log(path)
    assert log.skipped_lines == 0 and log.restarts == (40,) and log.rows.height == 59


@pytest.mark.real
def test_real_run_of_several_files(data: Path) -> None:
    folder = data / "logs" / "polypythias_wandb_tsv"
    files = sorted(folder.glob("410m-seed4_*.tsv"))
    log = read_log(files)
    # _zfe18b3d repeats the first 49 steps of _3gnddce8; each other file goes on where the one before ended.
    names = [
        (one.file.stem.split("_")[1], one.first, one.last, one.rows, one.replaced) for one in log.segments
    ]
    assert names == [
        ("nktat4z3", 1, 7000, 7000, 0),
        ("mjr8166t", 104001, 121000, 17000, 0),
        ("vj2l1j5m", 121001, 122000, 1000, 0),
        ("zfe18b3d", 122001, 122049, 49, 49),
        ("3gnddce8", 122001, 143000, 21000, 0),
    ]
    assert log.rows.height == 46_000 and log.duplicates == 49 and log.restarts == (122001,)
    losses = dict(zip(log.rows["step"], log.rows["loss"], strict=True))
    assert (losses[122001], losses[122002]) == (2.203000068664551, 10.984621047973633)
