from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hnf_offline.errors import InputError
from hnf_offline.run import open_run

pytest.importorskip("mlflow")
pytestmark = pytest.mark.libraries


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    # From 3.7 on files are only written where one asks for them.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    yield mlflow
    mlflow.set_tracking_uri(before)


def loss(step: int, add: float = 0.0) -> float:
    return {5: math.nan, 6: math.inf}.get(step, 4 - step / 50 + add)


def write(mlflow: Any, first: int, last: int, add: float = 0.0, run_id: str | None = None) -> str:
    with mlflow.start_run(run_id=run_id) as run:
        mlflow.log_param("lr", 0.1)
        for step in range(first, last + 1):
            mlflow.log_metrics({"train/loss": loss(step, add), "lr": 0.1}, step=step)
        mlflow.log_metric("val/loss", 9.0, step=last)
    return str(run.info.run_id)


def test_a_run_and_its_resumption_come_back_as_written(tmp_path: Path, mlflow: Any) -> None:
    run_id = write(mlflow, 1, 40)
    folder = next((tmp_path / "mlruns").glob(f"*/{run_id}"))
    for path in (folder, folder / "metrics", tmp_path / "mlruns", tmp_path):
        log = open_run(path).log
        assert log is not None and log.rows["step"].to_list() == list(range(1, 41))
        losses = log.rows["loss"].to_list()
        assert math.isnan(losses[4]) and losses[:4] + losses[5:] == [loss(s) for s in range(1, 41) if s != 5]
        assert log.rows["val/loss"].drop_nulls().to_list() == [9.0] and log.skipped_lines == 0
    write(mlflow, 31, 60, add=1.0, run_id=run_id)
    log = open_run(tmp_path).log
    assert log is not None and log.restarts == (31,) and log.duplicates == 10
    assert log.rows["loss"].to_list()[30:] == [loss(step, add=1.0) for step in range(31, 61)]
    file = open_run(folder / "metrics" / "train" / "loss").log
    assert file is not None and file.rows.height == 60


def test_several_runs_are_named_by_what_the_library_calls_them(tmp_path: Path, mlflow: Any) -> None:
    write(mlflow, 1, 30)
    write(mlflow, 1, 30, add=1.0)
    from hnf_offline.run.logs import read_log

    names = {run.info.run_name for run in mlflow.search_runs(output_format="list")}
    with pytest.raises(InputError, match="holds 2 MLflow runs") as caught:
        read_log(tmp_path / "mlruns")
    assert all(f"({name})" in str(caught.value) for name in names)
