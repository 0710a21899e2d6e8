"""The sample runs and real ones are sound; the damage that public series have is seen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch

from hnf_offline.check import cheap_checks, check_run
from hnf_offline.run import open_run
from tests.check.conftest import SAMPLES

RUNS = Path(__file__).parents[3] / "shared" / "data" / "runs"


@pytest.mark.parametrize("name", ["steady", "spiky"])
def test_the_sample_runs_are_sound(name: str) -> None:
    done = check_run(open_run(SAMPLES / name), device="cpu")
    assert done.sound
    assert done.faults == ()
    (gone,) = [one for one in done.checks if not one.looked_at]
    assert gone.name == "initialisation" and gone.skipped_because.startswith(
        "cannot say: the first checkpoint is at"
    )


def test_the_cheap_checks_of_a_hundred_checkpoints_read_no_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(SAMPLES / "spiky", tmp_path / "run")
    for step in range(12, 12 * 40, 12):
        shutil.copytree(
            SAMPLES / "spiky/checkpoints/step-000948", tmp_path / "run/checkpoints" / f"step-{948 + step:06d}"
        )
    run = open_run(tmp_path / "run")
    assert len(run.checkpoints) > 100
    for place in ("load_weights", "load_optimizer"):
        monkeypatch.setattr(f"hnf_offline.run.formats.{place}", lambda *_: pytest.fail("read a tensor"))
    monkeypatch.setattr(safetensors.torch, "load_file", lambda *_, **__: pytest.fail("read a tensor"))
    faults = cheap_checks(run)
    (same,) = [one for one in faults if one.kind == "identical-weights"]
    assert "(40 in all)" in same.evidence


@pytest.mark.real
@pytest.mark.skipif(not RUNS.is_dir(), reason="needs the real runs in ../shared/data")
@pytest.mark.parametrize(
    "name", ["hf_trainer_llama_spike", "dcp_fsdp2_nanogpt", "hf_sharded_safetensors", "rxnmapper_albert"]
)
def test_real_runs_are_sound(name: str) -> None:
    done = check_run(open_run(RUNS / name), device="cpu")
    assert done.wrong == ()
    assert done.sound
    told = {one.name: one for one in done.checks}
    if name == "hf_trainer_llama_spike":
        # The jump of the learning rate and the bad batch are no fault of the series; most states were not kept.
        assert done.faults == ()
        assert told["replayed-loss"].looked_at.startswith("6 checkpoints")
        assert told["optimizer-state"].looked_at == "13 optimizer states"
    if name == "rxnmapper_albert":
        assert told["discontinuity"].looked_at == ""


@pytest.mark.real
@pytest.mark.skipif(not RUNS.is_dir(), reason="needs the real runs in ../shared/data")
def test_the_faults_of_public_series_are_seen_in_a_real_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(RUNS / "hf_trainer_llama_spike", run, copy_function=shutil.copy)
    for path in (run, *run.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    # Final weights under early steps (EleutherAI/pythia#205), and a log that counts from 0.
    for step in (40, 50, 60):
        shutil.copy(run / "checkpoint-300/model.safetensors", run / f"checkpoint-{step}/model.safetensors")
    for file in run.rglob("trainer_state.json"):
        state = json.loads(file.read_text())
        for row in state["log_history"]:
            row["step"] -= 1
        file.write_text(json.dumps(state))
    done = check_run(open_run(run), device="cpu")
    told = {one.kind: one for one in done.wrong}
    assert set(told) == {"identical-weights", "replayed-loss"}
    assert told["identical-weights"].step == 40
    assert "they are of step 300" in told["identical-weights"].evidence
    assert "counts from 0" in told["replayed-loss"].evidence
