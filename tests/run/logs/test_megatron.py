from __future__ import annotations

import math
from pathlib import Path

import pytest

from hnf_offline.run.logs import read_log

NEW = (
    " [2024-05-01 10:00:00] iteration {step:8d}/    1000 | consumed samples: {step:12d} | elapsed time per iteration "
    "(ms): 145.6 | throughput per GPU (TFLOP/s/GPU): 101.5 | learning rate: 1.500000E-04 | global batch size:     4 | "
    "lm loss: {loss} | loss scale: 16384.0 | grad norm: 5.332 | number of skipped iterations:   0 | "
    "number of nan iterations:   0 |\n"
)
OLD = (
    " iteration {step:8d}/  320000 | elapsed time per iteration (ms): 13.4 | learning rate 1.000E-04 | "
    "lm loss {loss} | loss scale 65536.0 |\n"
)
SKIPPED = (
    " iteration       40/    1000 | learning rate: 0.000E+00 | loss scale: 8388608.0 | "
    "number of skipped iterations:  10 | number of nan iterations:   1 |\n"
)


def test_rows_among_other_lines(tmp_path: Path) -> None:
    path = tmp_path / "slurm-1.out"
    path.write_text(
        "+ srun python pretrain.py\n > number of parameters on (tensor, pipeline) model parallel rank (0, 0): 3 |\n"
        + NEW.format(step=10, loss="1.200000E+01")
        + "time (ms) | forward-compute: 12.50 | optimizer: 3.1\n"
        + NEW.format(step=20, loss="nan")
        + " validation loss at iteration 20 | lm loss value: 7.487306E+00 | lm loss PPL: 1.785236E+03 | \n"
        + SKIPPED
        + "x" * 200_000
        + "\n"
        + NEW.format(step=50, loss="8.5E+00")[:200]
    )
    log = read_log(path)
    assert log.formats == ("megatron",) and log.skipped_lines == 1
    assert log.rows["step"].to_list() == [10, 20, 40]
    losses = log.rows["loss"].to_list()
    assert losses[0] == 12.0 and math.isnan(losses[1]) and losses[2] is None
    assert log.rows["skipped_steps"].to_list() == [0.0, 0.0, 10.0]
    assert log.rows["loss_scale"].to_list() == [16384.0, 16384.0, 8388608.0]
    assert log.rows["grad_norm"].to_list() == [5.332, 5.332, None]
    assert log.rows["validation lm loss value"].to_list() == [None, 7.487306, None]
    assert log.columns["throughput"] == "throughput per GPU (TFLOP/s/GPU)"
    assert log.columns["step_time"] == "elapsed time per iteration (ms)"


def test_fields_without_colons(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("".join(OLD.format(step=step, loss="9.1E+00") for step in (100, 200)))
    log = read_log(path)
    assert log.rows["loss"].to_list() == [9.1, 9.1] and log.rows["learning_rate"].to_list() == [1e-4, 1e-4]


def test_a_number_that_was_cut_off_is_no_loss(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text(
        OLD.format(step=1, loss="9.25E+00")
        + " iteration        2/  320000 | learning rate 1.000E-04 | lm loss 9.1E+0"
    )
    log = read_log(path)
    assert log.rows["loss"].to_list() == [9.25] and log.skipped_lines == 1


def test_rows_after_much_other_text(tmp_path: Path) -> None:
    path = tmp_path / "out.log"
    path.write_text(
        "NCCL INFO something that says nothing of a loss\n" * 40_000 + NEW.format(step=1, loss="3.0E+00")
    )
    assert read_log(path).rows["loss"].to_list() == [3.0]


@pytest.mark.real
def test_real_logs(data: Path) -> None:
    folder = data / "logs" / "bigscience_megatron_out"
    log = read_log(folder / "meg_ds_3d_gpt2_perf_n16-ds-off.out")
    losses = dict(zip(log.rows["step"], log.rows["loss"], strict=True))
    assert list(losses) == list(range(1, 63))
    assert (losses[2], losses[3], losses[4], losses[31], losses[62]) == (
        12.44502,
        44.24266,
        48.14127,
        11.64951,
        20.43871,
    )
    for name, last, rows in (("n32_dp1_tp4_pp32-1809620", 120, 12), ("n4_dp1_tp4_pp4-1809579", 200, 20)):
        log = read_log(folder / f"meg_gpt2_base_{name}.out")
        assert log.rows["step"].to_list() == list(range(10, last + 1, 10)) and log.rows.height == rows
        assert log.rows["loss"].null_count() == 1 and log.rows["grad_norm"].null_count() == 2
        assert log.rows["skipped_steps"][:3].to_list() == [10.0, 8.0, 1.0]
        assert log.rows["loss_scale"][:3].to_list() == [8388608.0, 32768.0, 16384.0]
