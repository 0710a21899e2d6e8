from __future__ import annotations

from pathlib import Path

import pytest

from hnf_offline.run.logs import read_log


def apex(scale: float) -> str:
    return f"Gradient overflow.  Skipping step, loss scaler 0 reducing loss scale to {scale}\n"


def deepspeed(before: int, rank: int = 0) -> str:
    said = f"Rank {rank} Skipping step. Attempted loss scale: {before}, reducing to {before // 2}"
    return f"[INFO] [loss_scaler.py:183] [deepspeed] OVERFLOW! {said}\n"


def fairseq(scale: float) -> str:
    said = f"gradient overflow detected, ignoring gradient, setting loss scale to: {scale}"
    return f"| INFO | fairseq.trainer | NOTE: {said}\n"


@pytest.mark.parametrize(
    "lines",
    [
        apex(32768.0) + apex(16384.0),
        deepspeed(65536) + deepspeed(32768),
        fairseq(32768.0) + fairseq(16384.0),
        # Other processes say the same.
        apex(32768.0) * 4 + apex(16384.0) * 4,
        deepspeed(65536) + deepspeed(65536, rank=1) + deepspeed(32768) + deepspeed(32768, rank=1),
    ],
)
def test_skipped_steps_belong_to_the_row_that_follows(tmp_path: Path, lines: str) -> None:
    path = tmp_path / "out.log"
    path.write_text(f"step=1 loss=2.5\n{lines}step=2 loss=2.25\nstep=3 loss=2.0\n{apex(8192.0)}")
    log = read_log(path)
    assert log.rows["skipped_steps"].to_list() == [0.0, 2.0, 1.0]
    assert log.rows["loss_scale"].to_list() == [None, 16384.0, 8192.0] and log.skipped_lines == 0


def test_what_a_row_says_itself_wins(tmp_path: Path) -> None:
    path = tmp_path / "out.log"
    row = " iteration {0}/ 9 | lm loss: 2.5 | loss scale: 4.0 | number of skipped iterations: 7 |\n"
    path.write_text(row.format(1) + apex(1.0) + row.format(2))
    log = read_log(path)
    assert log.rows["skipped_steps"].to_list() == [7.0, 7.0] and log.rows["loss_scale"].to_list() == [
        4.0,
        4.0,
    ]


def test_among_printed_dictionaries(tmp_path: Path) -> None:
    path = tmp_path / "out.log"
    path.write_text("{'loss': 2.5, 'step': 1}\n" + deepspeed(8) + "{'loss': 2.0, 'step': 2}\n")
    log = read_log(path)
    assert log.rows["skipped_steps"].to_list() == [0.0, 1.0] and log.rows["loss_scale"].to_list() == [
        None,
        4.0,
    ]


def test_a_floor_that_is_reached_again_and_again(tmp_path: Path) -> None:
    path = tmp_path / "out.log"
    path.write_text("".join(f"{apex(1.0)}step={step} loss=2.5\n" for step in range(1, 6)))
    log = read_log(path)
    assert log.rows["skipped_steps"].to_list() == [1.0] * 5 and log.rows["loss_scale"].to_list() == [1.0] * 5


def test_prose_about_overflow_is_no_overflow(tmp_path: Path) -> None:
    path = tmp_path / "out.log"
    path.write_text(
        "step=1 loss=2.5\nstack overflow in tokenizer\nbuffer overflow detected\nstep=2 loss=2.0\n"
    )
    assert "skipped_steps" not in read_log(path).rows.columns
