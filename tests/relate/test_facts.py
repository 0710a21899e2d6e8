from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from hnf_offline.relate.facts import run_facts
from hnf_offline.report import words
from hnf_offline.run.records import (
    Batches,
    Checkpoint,
    Log,
    LogSegment,
    Missing,
    ModelSource,
    OptimizerSettings,
    Run,
)
from hnf_offline.table import Row, table

PATH = Path("runs/a")
LOG = Log(
    pl.DataFrame({"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0]}),
    (PATH / "logs" / "log.jsonl", Path("elsewhere/log.csv")),
    duplicates=2,
    skipped_lines=1,
    restarts=(2,),
    columns={"loss": "train/loss"},
    formats=("jsonl", "delimited"),
    segments=(
        LogSegment(PATH / "logs" / "log.jsonl", 1, 4, 4, 2),
        LogSegment(Path("elsewhere/log.csv"), 2, 9, 8),
    ),
    notes=("a note with <b>marks</b>",),
)


def run(**changes: Any) -> Run:
    points = tuple(Checkpoint(step, PATH / str(step), "pt", ()) for step in (10, 20, 30))
    return replace(Run(PATH, "a", points, LOG, None, None), **changes)


def profile(*rates: float, lag: bool = False) -> pl.DataFrame:
    rows = [
        Row(10 * (k + 1), "", "model", -1, "optimizer.learning_rate", rate) for k, rate in enumerate(rates)
    ]
    if lag:
        rows.append(Row(10, "", "model", -1, "adam.lag_rms", 1.0))
    return table(rows)


def facts(of: Run, measured: pl.DataFrame | None = None) -> dict[str, Any]:
    return run_facts(of, table() if measured is None else measured, 10, {})


def test_the_log_and_the_resumes_are_told_as_the_page_reads_them() -> None:
    told = facts(run(resume_steps=(2,)))
    assert told["checkpoint_steps"] == [10, 20, 30]
    assert told["resume_steps"] == [2]
    assert told["skipped_lines"] == 1
    log = dict(told["log"])
    assert log.pop("segments") == [
        {"file": "logs/log.jsonl", "steps": [1, 4], "rows": 4, "replaced": 2},
        {"file": "elsewhere/log.csv", "steps": [2, 9], "rows": 8, "replaced": 0},
    ]
    assert log == {
        "formats": ["jsonl", "delimited"],
        "files": ["logs/log.jsonl", "elsewhere/log.csv"],
        "columns": {"loss": "train/loss"},
        "rows": told["log"]["rows"],
        "notes": ["a note with <b>marks</b>"],
        "shift": 0,
        "duplicates": 2,
        "skipped_lines": 1,
        "restarts": [2],
    }
    assert words.health(told) == (
        "2 × logged step written twice; the last writer wins",
        "1 × log line unreadable",
        "log starts again at step 2",
        "resumed at step 2",
        "log read from logs/log.jsonl, elsewhere/log.csv (jsonl, delimited)",
        "log put together from 2 stretches: 1–4 (logs/log.jsonl, 2 of its rows written again later); "
        "2–9 (elsewhere/log.csv)",
        "a note with <b>marks</b>",
    )


def test_without_a_log_nothing_is_said_of_it() -> None:
    assert words.health(facts(run(log=None))) == ()


def test_the_optimizer_is_that_of_the_configuration() -> None:
    found = {"optimizer.kind": "Adam", "optimizer.learning_rate": 0.01, "optimizer.betas": [0.9, 0.99]}
    told = facts(run(configuration=found), profile(0.02, 0.03, lag=True))
    assert told["optimizer"] == "Adam, lr 0.01, betas (0.9, 0.99)"
    settings = OptimizerSettings("sgd", 0.1, momentum=0.9)
    assert (
        facts(run(configuration={"lr": 1.0}, optimizer=settings))["optimizer"] == "sgd, lr 0.1, momentum 0.9"
    )


def test_without_one_the_saved_states_tell_it() -> None:
    assert (
        facts(run(), profile(0.005, 0.05, 0.005, lag=True))["optimizer"] == "Adam or AdamW, lr 0.005 to 0.05"
    )
    assert facts(run(), profile(0.005, float("nan"), 0.005))["optimizer"] == "lr 0.005"
    assert facts(run())["optimizer"] == "unknown"
    assert facts(run(), pl.DataFrame())["optimizer"] == "unknown"


@pytest.mark.parametrize("betas", [[0.9], "0.9, 0.99", [0.9, None], None])
def test_odd_betas_are_left_out(betas: object) -> None:
    assert facts(run(configuration={"optimizer": "adamw", "betas": betas}))["optimizer"] == "adamw"


def test_one_layer_is_one_layer() -> None:
    model = ModelSource("gpt", {"n_layer": 1, "n_embd": 28})
    assert facts(run(model=model))["model"] == "GPT, 1 layer, width 28"


LOST = Missing("no optimizer state in 3 of 3 checkpoints", "no stability ratio there, only the raw curvature")


def cost(of: Run, *rows: Row) -> str:
    (told,) = facts(replace(of, missing=(LOST,)), table(rows))["missing"]
    assert told["what"] == LOST.what
    return told["cost"]


def test_an_estimate_of_s_is_told_as_an_estimate_where_the_state_is_missing() -> None:
    name = "estimate.stability_ratio"
    rows = [
        Row(10, "", "model", -1, name, 0.5, certified=False),
        Row(20, "", "model", -1, name, 1.25, certified=False),
    ]
    told = cost(run(), *rows)
    assert "only estimated, at 0.5 to 1.2" in told and "no alarm or advice uses it" in told


def test_without_an_estimate_the_reason_is_told_once_the_run_was_replayed() -> None:
    batches = Batches(PATH / "b.npz", "tokens", None, 4, 8)
    replayed = run(model=ModelSource("gpt", {}), batches=batches)
    gradient = Row(10, "", "model", -1, "gradient.norm", 1.0)
    assert cost(replayed, gradient) == f"{LOST.cost}; nor an estimate, since " + (
        "neither the log nor run.toml says the learning rate"
    )
    assert cost(run(), gradient) == LOST.cost
    assert cost(replayed) == LOST.cost


def test_sgd_lost_nothing_with_its_state() -> None:
    assert cost(run(), Row(10, "", "model", -1, "hessian.stability_ratio", 0.4)).startswith(
        "none to the stab"
    )
