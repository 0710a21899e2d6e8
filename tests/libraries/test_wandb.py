from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from hnf_offline.run import open_run
from hnf_offline.run.logs import read_log
from hnf_offline.run.logs.wandb_folder import read
from hnf_offline.run.logs.wandb_records import WandbRecords

pytest.importorskip("wandb")
pytestmark = pytest.mark.libraries

#: In a process of its own: wandb keeps a service running in the one that logs.
_RUN = """
import math, os, sys
os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_ERROR_REPORTING="false")
import wandb
run = wandb.init(project="p", id=sys.argv[2], dir=sys.argv[1], settings=wandb.Settings(x_disable_stats=True))
for step in range(int(sys.argv[3]), int(sys.argv[4]) + 1):
    loss = {5: math.nan, 6: math.inf}.get(step, 4 - step / 50 + float(sys.argv[5]))
    print({"loss": loss, "step": step})
    row = {"train/loss": loss, "train/global_step": step, "optimizer": {"lr": 0.1, "deep": {"beta": 0.9}}}
    if step % 10 == 0:
        row |= {"words": "text", "list": [1, 2], "counts": wandb.Histogram([1.0, 2.0])}
    wandb.log(row)
wandb.log({"eval/loss": 9.0, "train/global_step": int(sys.argv[4])})
wandb.finish()
"""


def log_run(folder: Path, name: str, first: int, last: int, add: float = 0.0) -> Path:
    before = set((folder / "wandb").glob("offline-run-*"))
    arguments = [str(folder), name, str(first), str(last), str(add)]
    subprocess.run([sys.executable, "-c", _RUN, *arguments], check=True, timeout=120, capture_output=True)
    (made,) = set((folder / "wandb").glob("offline-run-*")) - before
    return made


def test_an_offline_run_and_its_resumption_come_back_as_written(tmp_path: Path) -> None:
    first = log_run(tmp_path, "abc", 1, 120)
    file = next(first.glob("*.wandb"))
    for path in (
        file,
        first,
        first / "files",
        tmp_path / "wandb",
        tmp_path / "wandb" / "latest-run",
        tmp_path,
    ):
        log = open_run(path).log
        assert log is not None
        assert log.rows["step"].to_list() == list(range(1, 121))
        losses = log.rows["loss"].to_list()
        assert math.isnan(losses[4]) and losses[5] == math.inf
        assert [v for v in losses if math.isfinite(v)] == [
            4 - s / 50 for s in range(1, 121) if s not in {5, 6}
        ]
        if path == first / "files":
            continue  # only what the run printed lies there
        assert log.columns["step"] == "train/global_step" and log.skipped_lines == 0
        assert log.rows["optimizer/deep/beta"].to_list() == [0.9] * 120
        assert log.rows["eval/loss"].to_list() == [None] * 119 + [9.0]
    log_run(tmp_path, "abc", 101, 150, add=1.0)
    log = open_run(tmp_path).log
    assert log is not None and log.restarts == (101,) and log.duplicates == 20
    assert log.rows["loss"][100] == 4 - 101 / 50 + 1 and log.rows.height == 150
    assert read_log(tmp_path / "wandb").rows.equals(log.rows)


def test_fields_are_those_of_the_library(tmp_path: Path) -> None:
    from wandb.proto.wandb_internal_pb2 import HistoryRecord, Record

    folder = log_run(tmp_path, "abc", 1, 12)
    file = next(folder.glob("*.wandb"))
    rows = [Record.FromString(data) for data in WandbRecords(file)]
    assert len(rows) > 12
    theirs = [
        {"/".join(item.nested_key) or item.key: item.value_json for item in row.history.item}
        for row in rows
        if row.HasField("history")
    ]
    frame = read(file).frame
    assert frame.height == len(theirs) == 13
    for name in frame.columns:
        wanted = [float(row[name]) if name in row else None for row in theirs]
        for found, value in zip(frame[name], wanted, strict=True):
            assert found == value or (math.isnan(found) and value is not None and math.isnan(value))
    assert (HistoryRecord.DESCRIPTOR.fields_by_name["item"].number) == 1
