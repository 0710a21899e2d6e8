"""Where a run lives past the edge rounding grows: from checkpoint to checkpoint it is still the run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.rerun.zoom import zoom
from hnf_offline.run import open_run

SPIKY = Path(__file__).resolve().parents[2] / "sample_runs" / "spiky"
SETTINGS = ProfileSettings(tier="stability", device="cpu")


@pytest.fixture
def rounded_otherwise(tmp_path: Path) -> Path:
    """The sample run on the way into its last spike, begun from weights as another machine might round them."""
    folder = tmp_path / "run"
    shutil.copytree(SPIKY, folder, ignore=lambda _, names: [
        name for name in names if name.startswith("step-") and not 876 <= int(name[5:]) <= 924
    ])  # fmt: skip
    file = folder / "checkpoints" / "step-000876" / "model.safetensors"
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: value * (1 + 1e-6 * torch.randn(value.shape, generator=generator))
        for name, value in load_file(file).items()
    }
    save_file(weights, file)
    return folder


def test_checkpoints_on_the_way_are_taken_up_anew_where_rounding_has_grown(
    rounded_otherwise: Path, tmp_path: Path
) -> None:
    run = open_run(rounded_otherwise)
    done = zoom(run, start=876, stop=917, settings=SETTINGS, out=tmp_path / "out", every=0).retraining
    proof = done.reproduction
    assert proof.word == "exact", proof.because
    assert proof.because.startswith("from checkpoint to checkpoint 41 losses equal the log")
    assert "in one go it parts from the run at step" in proof.because
    assert [check.step for check in proof.weights] == [888, 900, 912]
    assert proof.found == ()
