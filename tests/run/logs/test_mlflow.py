from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from hnf_offline.errors import InputError
from hnf_offline.run import open_run
from hnf_offline.run.logs import format_of, read_log
from hnf_offline.run.logs.mlflow import read


def entries(first: int, last: int, start: int = 0, add: float = 0.0) -> list[tuple[int, float, int]]:
    return [(start + 10 * n, 3 - step / 100 + add, step) for n, step in enumerate(range(first, last + 1))]


def test_a_run_is_read_with_its_metrics_side_by_side(tmp_path: Path, make_logs: Any) -> None:
    run = make_logs.mlflow_run(
        tmp_path / "mlruns" / "0" / "abc",
        {
            "train/loss": [(0, 3.0, 1), (10, math.nan, 2), (20, math.inf, 3), (30, 2.0, 4)],
            "lr": [(1, 0.1, 1), (31, 0.05, 4)],
            "eval/deep/loss": [(22, 9.0, 3)],
        },
    )
    for path in (run, run / "metrics", tmp_path / "mlruns", tmp_path):
        log = open_run(path).log
        assert log is not None
        assert log.rows["step"].to_list() == [1, 2, 3, 4]
        losses = log.rows["loss"].to_list()
        assert losses[0] == 3.0 and math.isnan(losses[1]) and losses[2:] == [math.inf, 2.0]
        assert log.rows["learning_rate"].to_list() == [0.1, None, None, 0.05]
        assert log.rows["eval/deep/loss"].to_list() == [None, None, 9.0, None]
        assert (log.skipped_lines, log.restarts) == (0, ())


def test_a_restart_is_told_by_time_not_by_file(tmp_path: Path, make_logs: Any) -> None:
    again = entries(21, 50, start=5_000, add=0.5)
    run = make_logs.mlflow_run(
        tmp_path / "abc",
        # The evaluation at 25 was only reached once, after the restart.
        {"loss": entries(1, 30) + again, "val_loss": [(95, 8.0, 10), (5_045, 7.0, 25)]},
    )
    log = read_log(run)
    assert log.restarts == (21,) and log.duplicates == 10
    row = log.rows.row(24, named=True)
    assert (row["step"], row["loss"], row["val_loss"]) == (25, 3 - 0.25 + 0.5, 7.0)
    assert log.rows["val_loss"].drop_nulls().to_list() == [8.0, 7.0]


def test_metrics_that_count_epochs_are_no_restart(tmp_path: Path, make_logs: Any) -> None:
    epochs = [(50 * n, 1.0 * n, n) for n in range(1, 9)]
    log = read_log(make_logs.mlflow_run(tmp_path / "abc", {"loss": entries(1, 40), "epoch_time": epochs}))
    assert log.restarts == () and log.duplicates == 0 and log.rows.height == 40


def test_a_restart_is_found_where_the_same_loss_is_also_logged_against_samples(
    tmp_path: Path, make_logs: Any
) -> None:
    steps = [*entries(1, 30), *entries(21, 50, start=5_000, add=0.5)]
    samples = [(time, value, 512 * step) for time, value, step in steps]
    log = read_log(make_logs.mlflow_run(tmp_path / "abc", {"lm loss": steps, "lm loss vs samples": samples}))
    losses = log.rows.drop_nulls("loss")
    assert losses["step"].to_list() == list(range(1, 51)) and log.restarts == (21,) and log.duplicates == 10


def test_old_and_new_lines_and_bad_ones(tmp_path: Path) -> None:
    file = tmp_path / "metrics" / "loss"
    file.parent.mkdir()
    file.write_text(
        "1700000000000 3.5 0\r\n1700000000001 2.5 1 squad 0abc\n\n1700000000002 two 2\n"
        f"1700000000003 1.5 {'9' * 400}\n1700000000004 {'1' * 9000} 3\n"
        "1700000000005 1.25 2 x\n1700000000006 1.0 4\n1700"
    )
    raw = read(file)
    assert raw.frame["step"].to_list() == [0, 1, 4] and raw.frame["loss"].to_list() == [3.5, 2.5, 1.0]
    assert raw.skipped_lines == 5
    assert format_of(file) == "mlflow" and read_log(file).rows.height == 3


def test_several_runs_are_named_and_none_is_chosen(tmp_path: Path, make_logs: Any) -> None:
    for name, add in (("aa", 0.0), ("bb", 0.1)):
        metrics = {"loss": entries(1, 30, add=add)}
        make_logs.mlflow_run(tmp_path / "mlruns" / "0" / name, metrics, name=f"calm-{name}")
    # Metrics of a logged model are no run.
    make_logs.mlflow_run(tmp_path / "mlruns" / "0" / "models" / "m-1", {"loss": entries(1, 30)})
    with pytest.raises(InputError, match=r"2 MLflow runs: 0/aa \(calm-aa\), 0/bb \(calm-bb\); name one"):
        read_log(tmp_path / "mlruns")
    with pytest.raises(InputError, match=r"2 logs of the same steps: mlruns/0/aa, mlruns/0/bb"):
        open_run(tmp_path)
    assert open_run(tmp_path / "mlruns" / "0" / "bb").log is not None
    (tmp_path / "run.toml").write_text('[log]\nfiles = ["mlruns/0/bb"]\n')
    log = open_run(tmp_path).log
    assert log is not None and log.files == (tmp_path / "mlruns" / "0" / "bb",)


def test_a_folder_named_metrics_need_not_be_of_mlflow(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "notes").write_text("12 apples 3\n")
    assert format_of(tmp_path) is None
    with pytest.raises(InputError):
        read(tmp_path)


def test_a_link_out_of_the_run_is_not_followed(tmp_path: Path, make_logs: Any) -> None:
    secret = make_logs.mlflow_run(tmp_path / "secret", {"loss": entries(1, 9)}, name="secret-name")
    run = make_logs.mlflow_run(tmp_path / "runs" / "a", {"lr": entries(1, 9)})
    (run / "metrics" / "loss").symlink_to(secret / "metrics" / "loss")
    other = make_logs.mlflow_run(tmp_path / "runs" / "b", {"loss": entries(1, 9)})
    (other / "tags" / "mlflow.runName").unlink()
    (other / "tags" / "mlflow.runName").symlink_to(secret / "tags" / "mlflow.runName")
    assert "loss" not in read(run).frame.columns
    with pytest.raises(InputError) as caught:
        read(tmp_path / "runs")
    assert "secret" not in str(caught.value)
