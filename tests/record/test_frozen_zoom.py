"""What a black box froze is the run: zoom gives it again, dropout and unknown clipping included."""

from __future__ import annotations

from pathlib import Path

import pytest

from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.rerun.zoom import zoom
from hnf_offline.run import open_run

from .loops import train

MODEL = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.drop = nn.Dropout(0.2)
        self.body = nn.Linear(8, 16)
        self.head = nn.Linear(16, 11)

    def forward(self, input_ids):
        return self.head(torch.tanh(self.body(self.drop(self.embed(input_ids)))))
"""


def test_a_frozen_spike_with_dropout_is_retrained_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(160, tmp_path / "box", spike_at=120, keep=48, state_every=16, after=8)
    frozen = next((tmp_path / "box").glob("frozen-*"))
    (tmp_path / "frozen_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    run = open_run(frozen)
    first, last = run.checkpoints[0].step, run.checkpoints[-1].step
    settings = ProfileSettings(tier="stability", device="cpu")
    done = zoom(
        run,
        start=first,
        stop=last,
        settings=settings,
        out=tmp_path / "out",
        every=0,
        model="frozen_model:Small",
    )
    proof = done.retraining.reproduction
    assert proof.word == "exact", proof.because
    assert proof.loss_difference is not None and proof.loss_difference < 1e-6
    assert {"dropout on", "gradient norm clipped at 1"} <= set(proof.assumed)
    assert proof.found == ("gradient norm clipped at 1",), "the loop did not say that it clips"

    states = frozen / "random_states.safetensors"
    states.unlink()
    blind = zoom(
        open_run(frozen), start=first, stop=last, settings=settings, out=tmp_path / "b", every=0,
        model="frozen_model:Small",
    ).retraining.reproduction  # fmt: skip
    assert blind.word == "not_reproducible"
    assert "dropout" in blind.because
