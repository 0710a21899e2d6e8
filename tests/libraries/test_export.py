"""Exports are read back by the trackers themselves, or by what reads their files."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest

from hnf_offline.export import export
from hnf_offline.report import write_report
from hnf_offline.run.logs.wandb_records import WandbRecords
from tests.report import made

pytestmark = pytest.mark.libraries


@pytest.fixture
def report(tmp_path: Path) -> Path:
    run = made.spike_run()
    page = write_report(run.findings, run.log, run.profile, tmp_path / "gpt")
    run.profile.write_parquet(page.parent / "profile.parquet")
    return page.parent


def ratio() -> dict[int, float]:
    profile = made.spike_run().profile
    rows = profile.filter((pl.col("quantity") == "hessian.stability_ratio") & (pl.col("layer") == ""))
    return dict(zip(rows["step"].to_list(), rows["value"].to_list(), strict=True))


def test_mlflow_gives_every_value_and_alarm_back(report: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    folder, exported = export(report, "mlflow", tmp_path / "store")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=folder.as_uri())
    (experiment,) = [one for one in client.search_experiments() if one.name == "hnf_offline"]
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "hessian.stability_ratio/whole model")
    assert {one.step: one.value for one in history} == pytest.approx(ratio())
    assert len(run.data.metrics) == exported.scalars["tag"].n_unique()
    assert run.info.status == "FINISHED" and run.data.tags["verdict"] == exported.verdict
    alarms = Path(client.download_artifacts(run.info.run_id, "alarms.txt", str(tmp_path)))
    assert alarms.read_text().count("\n") == len(exported.texts) > 0


def test_wandb_writes_an_offline_run_that_can_be_read_back(report: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    folder, exported = export(report, "wandb", tmp_path / "store")
    (made_run,) = (folder / "wandb").glob("offline-run-*")
    (file,) = made_run.glob("*.wandb")
    found, alarms = {}, set()
    for record in WandbRecords(file):
        step = re.search(rb"\x12\x04step\x82\x01.(\d+)", record, re.DOTALL)
        value = re.search(rb"\x12\x17hessian.stability_ratio\x82\x01.([-\d.e]+)", record, re.DOTALL)
        if step and value:
            found[int(step[1])] = float(value[1])
        alarms |= {text for _, text in exported.texts if text.encode() in record}
    assert found == pytest.approx(ratio())
    assert alarms == {text for _, text in exported.texts}
