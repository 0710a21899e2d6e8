"""An optimizer state that was cut off while it was written costs S at its checkpoint, and nothing else."""

from __future__ import annotations

from pathlib import Path

import torch

from hnf_offline.profile import ProfileSettings, profile_run
from hnf_offline.run import open_run


def test_weights_beside_a_damaged_state_are_measured(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    for step in (1, 2):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        torch.save(module.state_dict(), folder / "pytorch_model.bin")
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    damaged = tmp_path / "run" / "checkpoint-2" / "optimizer.pt"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    profile = profile_run(open_run(tmp_path / "run"), ProfileSettings(tier="forward"), tmp_path / "out")
    assert profile.table["step"].unique().sort().to_list() == [1, 2]
    ((path, reason, cost),) = profile.skipped
    assert path == damaged and "optimizer state" in reason and cost == "S is left out at this checkpoint"
