"""Small runs on disk, written as their trainers write them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


@pytest.fixture
def data() -> Path:
    if not DATA.is_dir():
        pytest.skip("the real runs are not here")
    return DATA


def two_layers() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 2))


def trained(module: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    torch.manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(7, 3)).square().mean().backward()
        optimizer.step()


def write_weights(folder: Path, module: torch.nn.Module | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file((module or two_layers()).state_dict(), folder / "model.safetensors")
    return folder


def write_log(path: Path, steps: int, first: int = 1) -> Path:
    path.write_text(
        "".join(json.dumps({"step": s, "loss": 10.0 / (s + 1)}) + "\n" for s in range(first, first + steps))
    )
    return path


@pytest.fixture
def make() -> SimpleNamespace:
    """Writers of small files, as functions."""
    return SimpleNamespace(module=two_layers, train=trained, weights=write_weights, log=write_log)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A run as hnf_offline.record leaves it: two checkpoints, the second with optimizer state."""
    run = tmp_path / "recorded"
    run.mkdir()
    model = {"model_type": "gpt", "n_layer": 1, "n_head": 1, "n_embd": 4, "block_size": 3, "vocab_size": 7}
    config = {
        "format": "hnf_offline.record/1",
        "model": model,
        "optimizer": {"kind": "AdamW", "lr": 0.01},
        "training": {"seed": 3},
    }
    (run / "config.json").write_text(json.dumps(config))
    write_log(run / "log.jsonl", 20)
    tokens = torch.arange(40 * 3).reshape(40, 3) % 7
    steps = torch.arange(40) // 2 + 1
    save_file({"input_ids": tokens, "steps": steps}, run / "batches.safetensors")
    module = two_layers()
    write_weights(run / "checkpoints" / "step-000010", module)
    last = write_weights(run / "checkpoints" / "step-000020", module)
    names = [name for name, _ in module.named_parameters()]
    settings = {
        "kind": "AdamW",
        "param_groups": [
            {"lr": 0.02, "betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.1, "params": names}
        ],
        "step": dict.fromkeys(names, 20),
    }
    moments = {f"exp_avg_sq.{n}": torch.full_like(p.detach(), 0.5) for n, p in module.named_parameters()}
    moments |= {f"exp_avg.{n}": torch.zeros_like(p.detach()) for n, p in module.named_parameters()}
    save_file(moments, last / "optimizer.safetensors", metadata={"optimizer": json.dumps(settings)})
    return run
