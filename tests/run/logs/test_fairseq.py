from __future__ import annotations

from pathlib import Path

import pytest

from hnf_offline.run.logs import read_log


def test_text_of_old_and_new_releases(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    inner = (
        "epoch 001:  {step:5d} / 6000 loss=9.{step}, nll_loss=8.5, ppl=364.2, wps=12000, ups=3, num_updates={step}, "
        "lr=1.25e-05, gnorm={gnorm}, clip=0.000, loss_scale=64.000, train_wall=50\n"
    )
    path.write_text(
        "| " + inner.format(step=100, gnorm="2.5")
        + "2020-01-01 10:00:00 | INFO | train_inner | " + inner.format(step=200, gnorm="nan")
        + "| epoch 001 | loss 9.5 | nll_loss 8.1 | ppl 270 | wps 11000 | num_updates 300 | lr 1.25e-05 | gnorm 2.25\n"
        "| epoch 001 | valid on 'valid' subset | loss 7.25 | nll_loss 6.1 | num_updates 300\n"
        "| epoch 002:    100 / 6000 loss=8.0, nll_lo\n"
    )  # fmt: skip
    log = read_log(path)
    assert log.formats == ("fairseq",)
    assert log.rows["step"].to_list() == [100, 200, 300] and log.rows["loss"].to_list() == [9.1, 9.2, None]
    assert log.rows["grad_norm"][0] == 2.5 and log.rows["grad_norm"].is_nan()[1]
    assert log.rows["valid_loss"].to_list() == [None, None, 7.25]
    assert log.rows["train_loss"].to_list() == [None, None, 9.5]
    assert log.skipped_lines == 1 and log.rows["loss_scale"][0] == 64.0


def test_only_epochs_were_logged(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    path.write_text(
        "".join(
            f"2020 | INFO | train | epoch 00{e} | loss {9 - e} | wps 1 | num_updates {100 * e} | lr 1e-05 | gnorm 2\n"
            for e in (1, 2, 3)
        )
    )
    log = read_log(path)
    assert log.rows["step"].to_list() == [100, 200, 300] and log.rows["loss"].to_list() == [8.0, 7.0, 6.0]


@pytest.mark.real
@pytest.mark.parametrize(("name", "third", "gnorm"), [("run1", 25.22, 131.281), ("run2", 23.682, 119.682)])
def test_real_logs(data: Path, name: str, third: float, gnorm: float) -> None:
    log = read_log(data / "logs" / "fairseq_text_log" / f"{name}.log")
    assert log.formats == ("fairseq",) and log.skipped_lines == 0
    assert log.rows["step"].to_list() == list(range(1, 11)) and log.rows["loss"].null_count() == 0
    assert (log.rows["loss"][2], log.rows["grad_norm"][2]) == (third, gnorm)
    # Two gradient-overflow notes come before the third update.
    assert log.rows["skipped_steps"].to_list() == [0.0, 0.0, 2.0, *[0.0] * 7]
    assert log.rows["loss_scale"].to_list() == [4.0, 4.0, *[1.0] * 8]
