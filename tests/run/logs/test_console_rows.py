from __future__ import annotations

import math
from pathlib import Path

import pytest

from hnf_offline.errors import InputError
from hnf_offline.run.logs import format_of, read_log


def bar(position: int, total: int) -> str:
    return f"\r {100 * position // total:2d}%|{'█' * 3}{' ' * 7}| {position}/{total} [00:05<00:45,  2.00it/s]"


def row(loss: object, epoch: float) -> str:
    return f"{{'loss': {loss}, 'grad_norm': '0.3483', 'learning_rate': '1e-05', 'epoch': '{epoch}'}}"


def test_rows_take_the_step_of_the_bar_that_is_drawn_after_them(tmp_path: Path) -> None:
    text = "Map: 100%|###| 1000/1000 [00:01<00:00, 900 examples/s]\n" + bar(0, 90)
    for step in (10, 20, 30):
        text += bar(step - 1, 90) + f"\r      \r\x1b[A{row(repr(str(step / 4)), step / 45)}\n" + bar(step, 90)
        # An evaluation draws bars of its own.
        text += f"\n{bar(0, 4)}\x1b[A\n{{'eval_loss': '0.5', 'epoch': '{step / 45}'}}\n{bar(step, 90)}\n{bar(4, 4)}"
    text += "\n{'train_runtime': '0.3', 'train_loss': '77', 'epoch': '2.0'}\n" + bar(90, 90)
    path = tmp_path / "train.log"
    path.write_text(text)
    log = read_log(path)
    assert log.formats == ("console_rows",)
    assert log.rows["step"].to_list() == [10, 20, 30] and log.rows["loss"].to_list() == [2.5, 5.0, 7.5]
    assert log.rows["grad_norm"].to_list() == [0.3483] * 3 and log.rows["eval_loss"].to_list() == [0.5] * 3
    assert log.notes == ("The rows have no step; theirs is that of the progress bar.",)
    assert (log.skipped_lines, log.duplicates, log.restarts) == (0, 0, ())


def test_rows_without_a_bar_take_the_step_of_their_epoch_or_are_counted(tmp_path: Path) -> None:
    rows = "".join(row(value, epoch) + "\n" for value, epoch in ((2.5, 0.5), ("nan", 1.0), ("'inf'", 1.5)))
    path = tmp_path / "nohup.out"
    path.write_text("  Num Epochs = 3\n  Total optimization steps = 1,200\n" + rows)
    log = read_log(path)
    assert log.rows["step"].to_list() == [200, 400, 600] and "epoch" in log.notes[0]
    values = log.rows["loss"].to_list()
    assert values[0] == 2.5 and math.isnan(values[1]) and values[2] == math.inf
    path.write_text(rows)
    log = read_log(path)
    assert log.rows["step"].to_list() == [1, 2, 3] and "a step here is a row of the log" in log.notes[0]


def test_a_step_in_the_row_wins_and_other_dictionaries_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text(
        "args: {'learning_rate': 0.1, 'loss_type': 'ce'}\n"
        "INFO:root:{'step': 5, 'loss': np.float64(2.5), 'tokens': [1, 2]}\n"
        '2024-01-01 INFO - {"step": 6, "train": {"loss": 2.25}, "loss": 2.0}\n'
        "{'step': 7, 'loss': tensor(1.5, device='cuda:0')}\n"
        "{'step': 8, 'loss': 1.0, 'gra"
    )
    log = read_log(path)
    assert log.rows["step"].to_list() == [5, 6, 7] and log.rows["loss"].to_list() == [2.5, 2.0, 1.5]
    assert log.skipped_lines == 1 and log.notes == ()


def test_rows_of_a_run_that_was_started_again(tmp_path: Path) -> None:
    steps = [*range(1, 41), *range(31, 60)]
    path = tmp_path / "log"
    path.write_text(
        "".join(f"{{'step': {step}, 'loss': {position}}}\n" for position, step in enumerate(steps))
    )
    log = read_log(path)
    assert log.restarts == (31,) and log.duplicates == 10 and log.rows["loss"][30] == 40.0
    assert [(one.first, one.last, one.rows, one.replaced) for one in log.segments] == [
        (1, 40, 40, 10),
        (31, 59, 29, 0),
    ]


def test_a_deep_or_endless_dictionary_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    deep = '{"loss": ' + '{"a": ' * 100_000 + "1" + "}" * 100_001
    path.write_text(f"{deep}\n{{'step': 1, 'loss': 2.0}}\n{{'loss': {'9' * 5000}, 'step': 2}}\n")
    log = read_log(path)
    assert log.rows["step"].to_list() == [1]
    path.write_text(deep + "\n")
    assert format_of(path) is None
    with pytest.raises(InputError, match="no log of a known format"):
        read_log(path)
