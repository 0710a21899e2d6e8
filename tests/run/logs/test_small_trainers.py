"""nanoGPT, llm.c, modded-nanogpt and build-nanogpt."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from hnf_offline.run.logs import read_log

NANOGPT = (
    "number of parameters: 10.65M\n"
    "step 0: train loss 4.2874, val loss 4.2823\n"
    "iter 0: loss 4.2664, time 43507.09ms, mfu -100.00%\n"
    "iter 10: loss 3.2456, time 25.09ms, mfu 14.80%\n"
    "iter 20: loss nan, time 25.01ms, mfu 14.81%\n"
    "step 20: train loss 2.5, val loss 2.6\n"
    "iter 10: loss 3.5, time 24.00ms, mfu 14.80%\n"
    "iter 20: loss 3.25, time 24.00ms, mfu 14.80%\n"
    "iter 30: lo"
)
LLM_C = """\
| max_steps             | 18865                                              |
val loss 11.009
step    1/18865 | loss 11.008999 (+nanz)| norm 15.3969 (+nanz)| lr 8.57e-07 | 3056.34 ms | 171545 tok/s
step    2/18865 | loss 10.500000 (+0.12z)| norm 12.5000 (-0.50z)| lr 1.71e-06 | 3000.50 ms | 34.3% MFU | 171500 tok/s
HellaSwag: 2590/10042 = 0.257917
val loss 10.25
step    3/18865 | loss -nan (+nanz)| no
"""
LLM_PYTHON = "step    1/10 | train loss 10.951 | norm 18.3600 | lr 7.00e-04 | (4.40 ms | 58k tok/s)\n"
LLM_OLD = "val loss 5.3\n" + "".join(f"step {s}: train loss {5 - s}.25 (took 1452.1 ms)\n" for s in (0, 1))
MODDED = """\
import os
print(f'step:{step}/{args.num_iterations} val_loss:{val_loss:.4f} train_time:{ms:.0f}ms')
====================
Running pytorch 2.4.1
step:0/6200 val_loss:10.9264 train_time:285ms step_avg:nanms
step:1/6200 train_loss:10.9184 train_time:74701ms step_avg:nanms
step:2/6200 train_loss:8.6834 train_time:75965ms step_avg:216.33ms
step:2/6200 val_loss:8.5 train_time:75965ms step_avg:216.33ms
"""
BUILD = """\
total desired batch size: 524288
validation loss: 10.9511
step     0 | loss: 10.955029 | lr 8.3916e-07 | norm: 15.4005 | dt: 21000.50ms | tok/sec: 24965.12
step     1 | loss: 10.500000 | lr 1.6783e-06 | norm: 12.2500 | dt: 3000.25ms | tok/sec: 174762.67
HellaSwag accuracy: 2534/10042=0.2523
step     2 | loss: 10.25
"""


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_nanogpt(tmp_path: Path) -> None:
    log = read_log(written(tmp_path, "log.txt", NANOGPT))
    assert log.formats == ("nanogpt",) and log.rows["step"].to_list() == [0, 10, 20]
    # After the restart the last writer wins; what was logged apart of the same step stays.
    assert log.rows["loss"].to_list() == [4.2664, 3.5, 3.25] and log.restarts == (10,) and log.duplicates == 2
    assert log.rows["step_time"].to_list() == [43507.09, 24.0, 24.0]
    assert log.rows["val loss"][0] == 4.2823 and log.skipped_lines == 1
    only = "".join(
        f"step {s}: train loss {v}, val loss 3.0\n" for s, v in ((0, 4.25), (250, "nan"), (500, 2.5))
    )
    log = read_log(written(tmp_path, "evaluations.log", only))
    assert log.rows["step"].to_list() == [0, 250, 500] and math.isnan(log.rows["loss"][1])
    assert "estimated at each evaluation" in log.notes[0]


def test_llm_c(tmp_path: Path) -> None:
    log = read_log(written(tmp_path, "log.txt", LLM_C))
    assert log.formats == ("llm_c",) and log.rows["step"].to_list() == [0, 1, 2, 3]
    assert log.rows["loss"][:3].to_list() == [None, 11.008999, 10.5] and log.rows["loss"].is_nan()[3]
    assert log.rows["val loss"].to_list() == [11.009, None, 10.25, None]
    last = log.rows.row(2, named=True)
    assert (last["grad_norm"], last["learning_rate"], last["step_time"], last["throughput"]) == (
        12.5,
        1.71e-06,
        3000.5,
        171500,
    )
    log = read_log(written(tmp_path, "python.log", LLM_PYTHON + LLM_PYTHON.replace("1/10", "2/10")))
    assert log.formats == ("llm_c",) and log.rows["throughput"].to_list() == [58000.0, 58000.0]
    assert log.rows["step_time"].to_list() == [4.4, 4.4] and log.rows["grad_norm"].to_list() == [18.36, 18.36]
    log = read_log(written(tmp_path, "c.log", LLM_OLD))
    assert log.formats == ("llm_c",) and log.rows["loss"].to_list() == [5.25, 4.25]


def test_main_log_of_llm_c(tmp_path: Path) -> None:
    text = "s:0 tel:10.9\ns:1 trl:11.0090 lr:0.000001 norm:15.40\ns:2 trl:nan lr:0.000002 norm:inf\ns:250 eval:0.2517\n"
    log = read_log(written(tmp_path, "main.log", text))
    assert log.rows["step"].to_list() == [0, 1, 2, 250] and log.rows["loss"][1] == 11.009
    assert math.isnan(log.rows["loss"][2]) and log.rows["grad_norm"].to_list() == [None, 15.4, math.inf, None]
    assert log.rows["tel"][0] == 10.9


def test_modded_nanogpt(tmp_path: Path) -> None:
    log = read_log(written(tmp_path, "record.txt", MODDED))
    assert log.formats == ("modded_nanogpt",) and log.rows["step"].to_list() == [0, 1, 2]
    assert log.rows["loss"].to_list() == [None, 10.9184, 8.6834] and log.duplicates == 0
    assert log.rows["val_loss"].to_list() == [10.9264, None, 8.5] and log.notes == ()
    only = "".join(line + "\n" for line in MODDED.splitlines() if "train_loss" not in line)
    log = read_log(written(tmp_path, "new.txt", only + "step:1/6200 train_time:3ms step_avg:1ms\n"))
    assert log.rows["loss"].to_list() == [10.9264, None, 8.5] and "validation loss" in log.notes[0]


def test_build_nanogpt(tmp_path: Path) -> None:
    log = read_log(written(tmp_path, "out.log", BUILD))
    assert log.formats == ("build_nanogpt",) and log.rows["step"].to_list() == [0, 1, 2]
    assert log.rows["loss"].to_list() == [10.955029, 10.5, 10.25] and log.rows["val loss"][0] == 10.9511
    first = log.rows.row(0, named=True)
    assert (first["grad_norm"], first["learning_rate"], first["step_time"], first["throughput"]) == (
        15.4005,
        8.3916e-07,
        21000.5,
        24965.12,
    )
    log = read_log(
        written(
            tmp_path, "log.txt", "0 val 10.9511\n0 hella 0.2463\n0 train 10.955029\n1 train nan\n2 train 6."
        )
    )
    assert log.rows["loss"][0] == 10.955029 and math.isnan(log.rows["loss"][1])
    assert log.rows["val loss"].to_list() == [10.9511, None] and log.skipped_lines == 1


@pytest.mark.real
def test_real_records(data: Path) -> None:
    folder = data / "logs" / "modded_nanogpt_txt"
    scale = read_log(next(folder.glob("2024-10-20_ScaleUp1B*")))
    muon = read_log(next(folder.glob("2024-10-10_Muon*")))
    for log, last, truth in (
        (scale, 20344, {428: 6.3756, 607: 5.79, 1120: 5.58, 1788: 5.22, 5964: 5.70}),
        (muon, 6200, {919: 5.06}),
    ):
        assert log.rows["step"].to_list() == list(range(last + 1)) and log.rows["loss"].count() == last
        for step, loss in truth.items():
            assert log.rows["loss"][step] == pytest.approx(loss, abs=0.005)
    recent = read_log(next(folder.glob("recent_*")))
    with_loss = recent.rows.drop_nulls("loss")
    assert (
        with_loss["step"].to_list() == [0, 250, 500, 750, 1000, 1250, 1390]
        and with_loss["loss"][-1] == 3.2773
    )
    assert recent.rows.height == 1391 and "no training losses" in recent.notes[0]
