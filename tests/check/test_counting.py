"""A log that counts from 0 is found by replay and moved; nothing is moved that replay does not show."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hnf_offline.check.counting import counted_in_updates
from hnf_offline.record import Recorder
from hnf_offline.run import open_run
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.records import Run

SETTINGS = {
    "vocab_size": 8, "block_size": 4, "n_layer": 1, "n_head": 2, "n_embd": 8, "mlp_width": 8,
    "norm": "none", "tied": False,
}  # fmt: skip
STEPS, ROWS = 24, 2


def trained(folder: Path, batches: str, rate: float = 0.01) -> Path:
    """Train on another batch at every step; rows in order, or with the step of each row counted from 0 or 1."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SETTINGS))
    tokens = torch.randint(8, (STEPS * ROWS, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    with Recorder(folder, every=6, model={"model_type": "gpt", **SETTINGS}) as recorder:
        for step in range(1, STEPS + 1):
            rows = tokens[(step - 1) * ROWS : step * ROWS]
            loss = torch.nn.functional.cross_entropy(model(rows).flatten(0, 1), rows.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.record(step, model, optimizer, loss=float(loss.detach()), learning_rate=rate)
    from safetensors.torch import save_file

    first = {"in order": None, "from 0": 0, "from 1": 1}[batches]
    arrays = {"tokens": tokens, "labels": tokens.clone()}
    if first is not None:
        arrays["steps"] = torch.arange(STEPS).repeat_interleave(ROWS) + first
    save_file(arrays, folder / "batches.safetensors")
    (folder / "run.toml").write_text("[batches]\naligned = true\n")
    return folder


def count(folder: Path, change: Callable[[int], int]) -> Run:
    log = folder / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps({**row, "step": change(row["step"])}) + "\n" for row in rows))
    return open_run(folder)


@pytest.mark.parametrize("batches", ["in order", "from 0", "from 1"])
def test_a_log_from_0_is_moved_and_its_batches_with_it(tmp_path: Path, batches: str) -> None:
    run = count(trained(tmp_path / "run", batches), lambda step: step - 1)
    moved = counted_in_updates(run)
    assert run.log is not None and moved.log is not None and moved.batches is not None
    assert (run.log.rows["step"][0], moved.log.rows["step"][0], moved.log.rows["step"][-1]) == (0, 1, STEPS)
    assert (
        moved.log.shift == 1 and "counts from 0" in moved.log.notes[-1] and "6, 12, 18" in moved.log.notes[-1]
    )
    # The batch of the first update is the first two rows, whatever the file called them.
    assert [list(moved.batches.rows_of_step(step)) for step in (1, 7, STEPS)] == [[0, 1], [12, 13], [46, 47]]


@pytest.mark.parametrize("batches", ["in order", "from 1"])
def test_a_log_of_updates_stays(tmp_path: Path, batches: str) -> None:
    run = count(trained(tmp_path / "run", batches), lambda step: step)
    assert counted_in_updates(run) is run


def test_an_evaluation_at_step_0_is_no_reason_to_move(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "from 1")
    log = folder / "log.jsonl"
    log.write_text('{"step": 0, "loss": 9.0}\n' + log.read_text())
    run = open_run(folder)
    assert counted_in_updates(run) is run


def test_where_replay_cannot_tell_that_is_said(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "in order")
    run = count(folder, lambda step: step - 1)
    (folder / "batches.safetensors").unlink()
    (folder / "run.toml").unlink()
    bare = open_run(folder)
    told = counted_in_updates(bare)
    assert told.log is not None and bare.log is not None and run.log is not None
    assert told.log.rows.equals(bare.log.rows) and told.log.shift == 0
    assert "off by one" in told.log.notes[-1] and "no batches" in told.log.notes[-1]
    # Losses of another run fit neither way.
    folder = trained(tmp_path / "other", "from 1")
    log = folder / "log.jsonl"
    lines = log.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    log.write_text("".join(json.dumps({**row, "step": row["step"] - 1, "loss": 1.0}) + "\n" for row in rows))
    told = counted_in_updates(open_run(folder))
    assert told.log is not None and told.log.shift == 0 and "neither way" in told.log.notes[-1]


def test_losses_that_hardly_change_are_told_apart(tmp_path: Path) -> None:
    # Where a step moves the loss by less than a log is trusted, a checkpoint agrees with the row after its own too.
    folder = trained(tmp_path / "run", "in order", rate=1e-4)
    moved = counted_in_updates(count(folder, lambda step: step - 1))
    assert moved.log is not None and moved.log.shift == 1, moved.log.notes
    run = count(trained(tmp_path / "other", "in order", rate=1e-4), lambda step: step)
    assert counted_in_updates(run) is run


def test_the_report_counts_in_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hnf_offline.cli import main

    count(trained(tmp_path / "run", "in order"), lambda step: step - 1)
    monkeypatch.chdir(tmp_path)
    assert main(["report", "run", "--tier", "forward", "--quiet"]) == 0
    findings = json.loads((tmp_path / "reports" / "run" / "findings.json").read_text())
    assert findings["run"]["log"]["shift"] == 1
    assert findings["run"]["logged_steps"] == [1, STEPS]
    assert findings["replay_checks"]
    assert all(one["agrees"] and one["shift"] == 0 for one in findings["replay_checks"])
    assert "counts from 0" in (tmp_path / "reports" / "run" / "index.html").read_text()
