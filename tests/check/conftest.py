"""Healthy runs to plant faults into, and what `hnf check` says of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hnf_offline.check import check_run
from hnf_offline.check.examine import Examination
from hnf_offline.run import open_run

SAMPLES = Path(__file__).parents[2] / "sample_runs"
STEPS = (192, 228, 264, 300, 336, 372, 408, 444)


def folder_of(run: Path, step: int) -> Path:
    """Folder of a checkpoint, in either of the two layouts below."""
    recorded = run / "checkpoints" / f"step-{step:06d}"
    return recorded if recorded.exists() else run / f"checkpoint-{step}"


@pytest.fixture
def healthy(tmp_path: Path) -> Path:
    """Eight checkpoints of the steady sample run, with its log up to a little after them, and its batch."""
    run = tmp_path / "healthy"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("config.json", "batches.safetensors"):
        shutil.copy(SAMPLES / "steady" / name, run / name)
    rows = (SAMPLES / "steady" / "log.jsonl").read_text().splitlines(keepends=True)[:480]
    (run / "log.jsonl").write_text("".join(rows))
    for step in STEPS:
        name = f"step-{step:06d}"
        shutil.copytree(SAMPLES / "steady" / "checkpoints" / name, run / "checkpoints" / name)
    return run


@pytest.fixture
def trainer_run(healthy: Path) -> Path:
    """The same weights as the Hugging Face Trainer lays them out: no optimizer, a history in every checkpoint."""
    rows = [json.loads(line) for line in (healthy / "log.jsonl").read_text().splitlines()]
    model = json.loads((healthy / "config.json").read_text())["model"]
    for step in STEPS:
        old, new = folder_of(healthy, step), healthy / f"checkpoint-{step}"
        new.mkdir()
        (old / "model.safetensors").rename(new / "model.safetensors")
        (new / "config.json").write_text(json.dumps(model))
        (new / "tokenizer.json").write_text('{"vocabulary": "0123456789"}')
        state = {"global_step": step, "log_history": rows[:step]}
        (new / "trainer_state.json").write_text(json.dumps(state))
    shutil.rmtree(healthy / "checkpoints")
    for name in ("log.jsonl", "config.json", "batches.safetensors"):
        (healthy / name).unlink()
    return healthy


@pytest.fixture
def examined() -> Callable[..., Examination]:
    """Open a folder and run the checks."""
    return lambda run, **options: check_run(open_run(run), device="cpu", **options)
