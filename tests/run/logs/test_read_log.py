from __future__ import annotations

import json
import math
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnf_offline.errors import InputError, UsageError
from hnf_offline.run.logs import read_log
from hnf_offline.run.records import Log


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def losses(log: Log) -> dict[int, float | None]:
    return dict(zip(log.rows["step"].to_list(), log.rows["loss"].to_list(), strict=True))


def test_json_lines_with_everything_odd(tmp_path: Path) -> None:
    log = read_log(
        written(
            tmp_path / "log.jsonl",
            '{"_meta": {"lr": 0.1, "loss": 99}}\n'
            '{"step": 1, "train": {"loss": 3.5, "deep": {"x": 1}}, "lr": "1e-3"}\n'
            "\n"
            "Traceback (most recent call last):\n"
            '{"step": 2, "train": {"loss": NaN}, "lr": null}\n'
            '{"step": 3, "train": {"loss": Infinity}}\n'
            '{"step": "4", "train": {"loss": "2.5"}, "note": "text"}\n'
            "[1, 2]\n"
            '{"step": 5, "train": {"lo',
        )
    )
    assert log.rows.columns[:4] == ["step", "loss", "grad_norm", "learning_rate"]
    assert log.rows["step"].to_list() == [1, 2, 3, 4]
    values = log.rows["loss"].to_list()
    assert values[0] == 3.5 and math.isnan(values[1]) and values[2:] == [math.inf, 2.5]
    assert log.rows["learning_rate"].to_list() == [1e-3, None, None, None]
    assert log.rows["grad_norm"].null_count() == 4
    assert log.skipped_lines == 3 and "train/deep/x" in log.rows.columns
    assert log.columns == {"step": "step", "loss": "train/loss", "learning_rate": "lr"}


def test_strict_json_lines_read_as_the_odd_ones(tmp_path: Path) -> None:
    rows = [{"_meta": {"p": 1}}, *({"step": s, "train": {"loss": s / 2, "a": {"b": s}}} for s in range(9))]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    fast = read_log(written(tmp_path / "fast.jsonl", text))
    slow = read_log(written(tmp_path / "slow.jsonl", text + "broken\n"))
    assert fast.rows.equals(slow.rows) and (fast.skipped_lines, slow.skipped_lines) == (0, 1)


def test_sparse_table_completes_its_rows(tmp_path: Path) -> None:
    log = read_log(
        written(
            tmp_path / "metrics.csv",
            "epoch,lr-Adam,step,train_loss_step,val_loss\n0,,9,2.5,\n0,0.1,9,,\n0,,9,,7.5\n0,,19,nan,\n0,,29,inf,\n",
        )
    )
    assert log.rows["step"].to_list() == [9, 19, 29]
    first = log.rows.row(0, named=True)
    assert (first["loss"], first["learning_rate"], first["val_loss"]) == (2.5, 0.1, 7.5)
    assert math.isnan(log.rows["loss"][1]) and log.rows["loss"][2] == math.inf
    assert log.duplicates == 0


def test_export_with_run_names_and_bounds(tmp_path: Path) -> None:
    names = ("Step", "swift-1 - train/loss", "swift-1 - train/loss__MIN", "swift-1 - train/loss__MAX")
    text = "\t".join(names) + "\n5\t2\t1\t3\n6\t4\t3\t5\n"
    assert losses(read_log(written(tmp_path / "export.tsv", text))) == {5: 2.0, 6: 4.0}


def test_trainer_state_takes_training_rows_only(tmp_path: Path) -> None:
    text = """{"global_step": 20, "log_history": [
      {"loss": 3.0, "grad_norm": NaN, "learning_rate": 0.1, "epoch": 0.5, "step": 10},
      {"eval_loss": 1.0, "epoch": 0.5, "step": 10},
      {"loss": 2.0, "grad_norm": Infinity, "learning_rate": 0.1, "epoch": 1.0, "step": 20},
      {"train_runtime": 9.0, "train_loss": 77.0, "step": 20}]}"""
    log = read_log(written(tmp_path / "trainer_state.json", text))
    assert losses(log) == {10: 3.0, 20: 2.0}
    assert math.isnan(log.rows["grad_norm"][0]) and log.rows["grad_norm"][1] == math.inf
    assert log.rows["eval_loss"].to_list() == [1.0, None] and log.duplicates == 0


def test_a_resumed_run_keeps_what_was_written_last(tmp_path: Path) -> None:
    rows = [
        (1, 5.0),
        (2, 4.0),
        (3, 3.0),
        (4, 2.0),
        (3, 3.5),
        (4, 3.25),
        (5, 3.0),
        *((s, 1.0) for s in range(6, 20)),
    ]
    log = read_log(written(tmp_path / "log.csv", "iter,loss\n" + "".join(f"{s},{v}\n" for s, v in rows)))
    assert [losses(log)[s] for s in (2, 3, 4, 5)] == [4.0, 3.5, 3.25, 3.0]
    assert (log.duplicates, log.restarts) == (2, (3,))


def test_files_of_one_run_go_by_their_steps(tmp_path: Path) -> None:
    first = written(tmp_path / "z.csv", "step,loss\n" + "".join(f"{s},1\n" for s in range(1, 11)))
    second = written(tmp_path / "a.csv", "step,loss\n" + "".join(f"{s},2\n" for s in range(8, 16)))
    third = written(tmp_path / "m.csv", "step,loss\n" + "".join(f"{s},3\n" for s in range(16, 20)))
    log = read_log([second, third, first])
    assert log.files == (first, second, third)
    assert log.rows["loss"].to_list() == [1.0] * 7 + [2.0] * 8 + [3.0] * 4
    # The third goes on where the second ended: that is no restart.
    assert (log.duplicates, log.restarts) == (3, (8,))


def test_a_table_in_no_order_is_sorted_without_restarts(tmp_path: Path) -> None:
    log = read_log(
        written(tmp_path / "log.csv", "step,loss\n" + "".join(f"{s},{s}\n" for s in range(50, 0, -1)))
    )
    assert log.rows["step"].to_list() == list(range(1, 51)) and log.restarts == ()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.floats(width=32)), min_size=1, max_size=60))
def test_every_step_once_and_the_last_loss_wins(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, float]]
) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    log = read_log(written(path, "".join(json.dumps({"step": s, "loss": v}) + "\n" for s, v in rows)))
    assert log.rows["step"].to_list() == sorted({s for s, _ in rows})
    assert log.duplicates == len(rows) - log.rows.height and log.skipped_lines == 0
    for step, value in dict(rows).items():
        found = losses(log)[step]
        assert found == value or (math.isnan(value) and found is not None and math.isnan(found))


def test_columns_can_be_named(tmp_path: Path) -> None:
    file = written(tmp_path / "x.csv", "n,objective,step\n1,5,9\n2,6,8\n")
    with pytest.raises(InputError, match=r"no loss column among 'n', 'objective', 'step'"):
        read_log(file)
    log = read_log(file, {"loss": "objective", "step": "n"})
    assert losses(log) == {1: 5.0, 2: 6.0}
    with pytest.raises(UsageError, match="no column 'objectiv'"):
        read_log(file, {"loss": "objectiv"})
    with pytest.raises(UsageError, match="unknown log column 'los'"):
        read_log(file, {"los": "objective"})


@pytest.mark.parametrize(
    ("header", "loss"),
    [
        ("step,train/lm_loss", "train/lm_loss"),
        ("trainer/global_step,_step,train.loss,val/loss", "train.loss"),
        ("iteration,lm loss", "lm loss"),
        ("step,eval_loss,loss", "loss"),
    ],
)
def test_usual_names_are_known(tmp_path: Path, header: str, loss: str) -> None:
    log = read_log(
        written(tmp_path / "log.csv", header + "\n" + ",".join("7" for _ in header.split(",")) + "\n")
    )
    assert log.columns["loss"] == loss and log.columns["step"] == header.split(",", maxsplit=1)[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.csv", ""),
        ("log.csv", "step,loss\n"),
        ("log.jsonl", ""),
        ("log.jsonl", '{"step": 1, "val_loss": 3}\n'),
        ("log.jsonl", '{"loss": 1}\n'),
        ("log.csv", "step,loss\n1.5,3\n"),
        ("trainer_state.json", '{"log_history": []}'),
        ("trainer_state.json", '{"log_history": 5}'),
        ("trainer_state.json", "{"),
        ("notes.md", "# step loss"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(InputError) as caught:
        read_log(written(tmp_path / name, text))
    assert caught.value.path == tmp_path / name


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["a.csv", "a.tsv", "a.jsonl", "trainer_state.json"]))
def test_no_bytes_crash_a_reader(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str) -> None:
    path = tmp_path_factory.mktemp("log") / name
    path.write_bytes(content)
    try:
        assert isinstance(read_log(path).rows, pl.DataFrame)
    except InputError as error:
        assert error.path == path


@pytest.mark.real
@pytest.mark.parametrize(
    ("file", "truth"),
    [
        ("polypythias_wandb_tsv/410m-seed3_vjl8rypi.tsv", {75001: 2.21, 75002: 11.08}),
        ("polypythias_wandb_tsv/410m-seed4_3gnddce8.tsv", {122001: 2.20, 122002: 10.98}),
        ("jsonl_grokking/s5_mech_sgdm_sc1.0_wd0.01_s4.jsonl", {2250: 0.01, 2300: 9.17, 3500: 6.92}),
        ("jsonl_grokking/mech_sgdm_sc3.0_wd0.01_s2.jsonl", {250: 0.01, 275: 5.17}),
        ("hf_trainer_state/stanford_alpaca_spike932.json", {932: 0.51}),
        ("../runs/dcp_fsdp2_nanogpt/trace.jsonl", {75: 2.97, 78: 3.99, 120: 2.65}),
        ("../runs/hf_trainer_llama_spike/trainer_state.json", {151: 3.43, 152: 6.28, 219: 2.75, 220: 10.86}),
    ],
)
def test_real_logs(data: Path, file: str, truth: dict[int, float]) -> None:
    log = read_log(data / "logs" / file)
    found = losses(log)
    assert {step: round(found[step] or 0.0, 2) for step in truth} == truth
    assert log.skipped_lines == 0 and log.restarts == ()


@pytest.mark.real
def test_real_peaks(data: Path) -> None:
    tsv = data / "logs" / "polypythias_wandb_tsv"
    for name, first, last, peak in (
        ("160m-seed4_s5lcpsmk", 1318, 1343, 6.46),
        ("160m-seed9_tgxpz5vf", 1256, 1279, 5.49),
    ):
        burst = read_log(tsv / f"{name}.tsv").rows.filter(pl.col("step").is_between(first, last))
        assert burst["loss"].max() == pytest.approx(peak, abs=0.005)
    star = read_log(data / "logs" / "hf_trainer_state" / "star_custom_keys.json")
    assert star.rows.filter(pl.col("step") == 22360)["grad_norm"].item() == pytest.approx(82.4, abs=0.05)
    assert star.columns["learning_rate"] == "lr"


@pytest.mark.real
def test_real_restarts(data: Path) -> None:
    log = read_log(sorted((data / "logs" / "polypythias_wandb_tsv").glob("410m-seed8_*.tsv")))
    assert log.restarts == (513, 1001, 2001) and log.rows.height == 23026
    assert log.duplicates == 154 + 666 + 252
