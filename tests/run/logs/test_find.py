from __future__ import annotations

import gzip
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hnf_offline.run.logs.find import find_logs
from hnf_offline.run.logs.same_run import goes_further, repeats
from hnf_offline.run.logs.walk import walk
from hnf_offline.run.records import Checkpoint, Log


def loss(step: int, seed: float = 0.0) -> float:
    return round(
        8 / (1 + step / 50) + 0.2 * math.sin(step * 1.7 + seed) + 0.05 * math.sin(step * step + seed), 4
    )


def rows(first: int, last: int, every: int = 1, seed: float = 0.0) -> list[dict[str, float]]:
    return [{"step": s, "loss": loss(s, seed)} for s in range(first, last + 1) if s % every == 0]


def lines(path: Path, content: list[dict[str, float]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def table(path: Path, content: list[dict[str, float]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("step,train_loss\n" + "".join(f"{row['step']},{row['loss']}\n" for row in content))
    return path


def state(path: Path, content: list[dict[str, float]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"global_step": content[-1]["step"], "log_history": content}, indent=2))
    return path


def found(path: Path, checkpoints: tuple[Checkpoint, ...] = ()) -> Log:
    log, skipped = find_logs(path, checkpoints)
    assert log is not None, skipped
    return log


def test_the_state_of_the_last_checkpoint_is_the_log(tmp_path: Path) -> None:
    state(tmp_path / "checkpoint-50" / "trainer_state.json", rows(1, 50))
    last = state(tmp_path / "checkpoint-100" / "trainer_state.json", rows(1, 100))
    checkpoints = tuple(
        Checkpoint(s, tmp_path / f"checkpoint-{s}", "hf_trainer", (tmp_path / f"checkpoint-{s}" / "w",))
        for s in (50, 100)
    )
    assert found(tmp_path, checkpoints).files == (last,)
    # The weights of the last one are lost, so nothing calls it a checkpoint any more.
    assert found(tmp_path, checkpoints[:1]).files == (last,)
    assert found(tmp_path).rows.height == 100


def test_the_same_rows_elsewhere_are_named_and_not_merged(tmp_path: Path, make_logs: Any) -> None:
    kept = state(tmp_path / "trainer_state.json", rows(1, 60))
    lines(tmp_path / "console.log", rows(1, 60))
    make_logs.mlflow_run(tmp_path / "mlruns" / "0" / "a", {"loss": [(s, loss(s), s) for s in range(1, 61)]})
    lines(tmp_path / "old" / "ignored.log", rows(1, 90))
    log = found(tmp_path)
    assert log.files == (kept,) and log.duplicates == 0
    assert log.notes == (
        "Other logs were seen and not used: mlruns/0/a (the same run), console.log (the same run).",
    )


def test_a_log_that_goes_on_after_the_last_checkpoint_wins(tmp_path: Path) -> None:
    state(tmp_path / "checkpoint-100" / "trainer_state.json", rows(1, 100))
    longer = lines(tmp_path / "train.log", rows(1, 147))
    log = found(tmp_path)
    assert log.files == (longer,) and log.rows["step"][-1] == 147
    assert "checkpoint-100/trainer_state.json (the same run, told less far" in log.notes[-1]


@pytest.mark.parametrize("mean", [False, True])
def test_a_log_of_every_step_wins_over_one_of_every_tenth(tmp_path: Path, mean: bool) -> None:
    every = [
        {"step": s, "loss": round(sum(loss(k) for k in range(s - 9, s + 1)) / 10, 4) if mean else loss(s)}
        for s in range(10, 201, 10)
    ]
    state(tmp_path / "trainer_state.json", every)
    fine = lines(tmp_path / "steps.jsonl", rows(1, 200))
    assert found(tmp_path).files == (fine,)


def test_a_longer_log_of_another_run_does_not_win(tmp_path: Path) -> None:
    kept = state(tmp_path / "trainer_state.json", rows(1, 100))
    lines(tmp_path / "yesterday.log", rows(1, 500, seed=1.0))
    log = found(tmp_path)
    assert log.files == (kept,)
    assert log.notes == (
        "Other logs were seen and not used: yesterday.log (another run, or told otherwise).",
    )


def test_a_sparse_log_that_ends_later_does_not_win(tmp_path: Path) -> None:
    kept = state(tmp_path / "trainer_state.json", rows(1, 100))
    lines(tmp_path / "summary.log", rows(1, 200, every=25))
    assert found(tmp_path).files == (kept,)


def test_a_console_copied_to_two_files_is_one_log(tmp_path: Path) -> None:
    lines(tmp_path / "slurm-17.log", rows(1, 80))
    whole = lines(tmp_path / "train.log", rows(1, 90))
    log = found(tmp_path)
    assert log.files == (whole,) and log.restarts == () and log.duplicates == 0
    assert "slurm-17.log (a copy of train.log)" in log.notes[-1]


def test_parts_of_one_run_are_put_together_and_overlaps_are_no_copies(tmp_path: Path) -> None:
    first = lines(tmp_path / "slurm-17.log", rows(1, 80))
    second = lines(tmp_path / "slurm-18.log", rows(71, 200))
    log = found(tmp_path)
    assert log.files == (first, second) and log.rows.height == 200
    assert (log.restarts, log.duplicates) == ((71,), 10)


def test_lightning_versions_that_go_on_are_restarts(tmp_path: Path) -> None:
    table(tmp_path / "lightning_logs" / "version_0" / "metrics.csv", rows(1, 80))
    table(tmp_path / "lightning_logs" / "version_1" / "metrics.csv", rows(71, 200))
    log = found(tmp_path)
    assert log.rows.height == 200 and log.restarts == (71,)


def test_lightning_versions_of_the_same_steps_are_runs(tmp_path: Path) -> None:
    paths = [
        table(tmp_path / "my" / "logs" / f"version_{n}" / "metrics.csv", rows(1, 80, seed=n))
        for n in range(3)
    ]
    log, skipped = find_logs(tmp_path)
    assert log is None
    assert skipped[0].reason == (
        "has 3 logs of the same steps: my/logs/version_0/metrics.csv, my/logs/version_1/metrics.csv,"
        " my/logs/version_2/metrics.csv"
    )
    assert "name one of them" in skipped[0].remedy and "[log] files" in skipped[0].remedy
    # Checkpoints in one of them tell which run is meant.
    weights = paths[1].parent / "checkpoints" / "epoch=0-step=80.ckpt"
    weights.parent.mkdir()
    weights.write_bytes(b"x")
    log = found(tmp_path, (Checkpoint(80, weights, "lightning", (weights,)),))
    assert log.files == (paths[1],) and "not beside the checkpoints" in log.notes[-1]
    assert found(paths[2].parent).files == (paths[2],)


def test_compressed_logs_and_logs_in_usual_folders(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    packed = tmp_path / "logs" / "metrics.jsonl.gz"
    packed.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows(1, 40)).encode()))
    assert found(tmp_path).files == (packed,)


@pytest.mark.parametrize("name", ["slurm-17.out", "job.err", "train.txt", "logs/train.log", "stdout"])
def test_what_was_printed_is_found_by_its_content(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(
        "Loading the data\n" + "".join(f"step={r['step']} loss={r['loss']}\n" for r in rows(1, 40))
    )
    (tmp_path / "notes.txt").write_text("It began well, loss fell, then it did not.\n")
    log = found(tmp_path)
    assert log.files == (file,) and log.rows.height == 40


def test_links_out_of_the_run_are_not_followed_and_told(tmp_path: Path) -> None:
    outside = lines(tmp_path / "outside" / "log.jsonl", rows(1, 40))
    run = tmp_path / "run"
    run.mkdir()
    (run / "logs").symlink_to(outside.parent)
    (run / "metrics.jsonl").symlink_to(outside)
    (run / "loop").symlink_to(run)
    log, skipped = find_logs(run)
    assert log is None
    assert [(one.path.name, "leads out" in one.reason) for one in skipped] == [
        ("logs", True),
        ("metrics.jsonl", True),
    ]
    (run / "inner").mkdir()
    inner = lines(run / "inner" / "data.jsonl", rows(1, 40))
    (run / "trace.jsonl").symlink_to(inner)
    assert found(run).rows.height == 40


def test_a_large_checkpoint_folder_is_not_gone_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines(tmp_path / "log.jsonl", rows(1, 40))
    shards = tmp_path / "global_step40"
    shards.mkdir()
    for number in range(1_000):
        (shards / f"part-{number}.log").touch()
    checkpoint = Checkpoint(40, shards, "deepspeed", ())
    listed: list[str] = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path).name) or scan(path))
    assert found(tmp_path, (checkpoint,)).rows.height == 40
    assert shards.name not in listed
    # Nothing says that it is a checkpoint: its names are read once, its files are not opened.
    monkeypatch.setattr("hnf_offline.run.logs.find.format_of", pytest.fail)
    assert found(tmp_path).rows.height == 40
    assert listed.count(shards.name) == 1


def test_a_deep_tree_is_bounded(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(60):
        deep /= "d"
    deep.mkdir(parents=True)
    assert len(list(walk(tmp_path, 4))) == 5


@pytest.mark.parametrize("other", [None, "log.jsonl"])
def test_a_missing_package_is_told_where_it_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str | None
) -> None:
    from hnf_offline.run.logs import tensorboard

    (tmp_path / "runs" / "a").mkdir(parents=True)
    header = b"\x02" + b"\0" * 7
    from hnf_offline.run.logs.event_records import masked_crc32c

    record = header + masked_crc32c(header).to_bytes(4, "little") + b"ab" + b"\0" * 4
    (tmp_path / "runs" / "a" / "events.out.tfevents.1.h.1.0").write_bytes(record)
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    tensorboard._event.cache_clear()
    if other:
        lines(tmp_path / other, rows(1, 40))
    log, skipped = find_logs(tmp_path)
    tensorboard._event.cache_clear()
    if other:
        assert log is not None and not skipped
    else:
        assert log is None
        assert "needs the package tensorboard" in skipped[0].reason
        assert "hnf_offline[tensorboard]" in skipped[0].remedy


def test_a_folder_of_runs_names_them(tmp_path: Path) -> None:
    state(tmp_path / "a" / "checkpoint-9" / "trainer_state.json", rows(1, 9))
    state(tmp_path / "b" / "trainer_state.json", rows(1, 9))
    lines(tmp_path / "c" / "metrics.jsonl", rows(1, 9))
    (tmp_path / "d").mkdir()
    log, skipped = find_logs(tmp_path)
    assert log is None
    assert skipped[0].reason == "holds no log itself, but what looks like runs: a, b, c"
    assert skipped[0].remedy == f"name one of them, such as {tmp_path / 'a'}"
    assert found(tmp_path / "a").rows.height == 9


def test_a_loss_of_an_unknown_name_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("step,objective\n1,2\n2,3\n")
    log, skipped = find_logs(tmp_path)
    assert log is None and [one.path.name for one in skipped] == ["mine.csv"]
    assert "no loss column among 'step', 'objective'" in skipped[0].reason and "columns" in skipped[0].remedy
    named, _ = find_logs(tmp_path, (), {"loss": "objective"})
    assert named is not None and named.rows["loss"].to_list() == [2.0, 3.0]
    lines(tmp_path / "train.log", rows(1, 9))
    log, skipped = find_logs(tmp_path)
    assert log is not None and skipped == []


def test_hundreds_of_files_are_not_tried(tmp_path: Path) -> None:
    for number in range(300):
        lines(tmp_path / f"sample-{number}.txt", rows(1, 3))
    log, skipped = find_logs(tmp_path)
    assert log is None and "holds 300 files that may be logs; none was tried" in skipped[0].reason


def test_settings_and_other_texts_are_no_logs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 4}')
    (tmp_path / "notes.txt").write_text("loss of time: step back and think\n")
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    assert find_logs(tmp_path) == (None, [])


@pytest.fixture
def read() -> Callable[[list[dict[str, float]]], Log]:
    import polars as pl

    return lambda content: Log(
        pl.DataFrame(content, schema={"step": pl.Int64, "loss": pl.Float64}), (Path("x"),)
    )


def test_two_seeds_are_not_one_run(read: Callable[[list[dict[str, float]]], Log]) -> None:
    # Same data in the same order: losses of other seeds differ by a percent or so.
    other = [
        {"step": row["step"], "loss": row["loss"] * (1 + 0.01 * math.sin(7 * row["step"]))}
        for row in rows(1, 300)
    ]
    assert not repeats(read(other), read(rows(1, 300)))
    assert not goes_further(read([*other, *rows(301, 400)]), read(rows(1, 300)))
    printed = [{"step": row["step"], "loss": float(f"{row['loss']:.4g}")} for row in rows(1, 300)]
    assert repeats(read(printed), read(rows(1, 300)))


def test_nan_agrees_with_nan_only(read: Callable[[list[dict[str, float]]], Log]) -> None:
    lost = [{"step": s, "loss": math.nan} for s in range(1, 20)]
    assert repeats(read(lost), read(lost))
    assert not repeats(read(lost), read(rows(1, 19)))
