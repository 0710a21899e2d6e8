"""A small run on disk, and the command line as a user calls it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hnf_offline.cli import main


@dataclass(frozen=True)
class Said:
    """What a call of the command line gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON"))


@pytest.fixture
def hnf(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Said]:
    """Call `hnf` in an empty folder."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for name in [one for one in os.environ if one.startswith("HNF_")]:
        monkeypatch.delenv(name)

    def call(*arguments: object) -> Said:
        capsys.readouterr()
        code = main([str(one) for one in arguments])
        streams = capsys.readouterr()
        return Said(code, streams.out, streams.err)

    return call


@pytest.fixture
def write_log() -> Callable[..., Path]:
    """Writer of synthetic logs."""
    return _write_log


def _write_log(path: Path, steps: int = 200, spike: int | None = 120, nan: int | None = None) -> Path:
    """Write a JSONL log with at most one spike of two steps."""
    noise = np.random.default_rng(0).standard_normal(steps)
    lines = []
    for step in range(1, steps + 1):
        loss = float(3 * np.exp(0.01 * noise[step - 1]))
        if spike is not None and step in {spike, spike + 1}:
            loss *= 3
        text = "NaN" if nan is not None and step >= nan else repr(loss)
        lines.append(f'{{"step": {step}, "loss": {text}, "grad_norm": 1.0, "learning_rate": 0.001}}')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _record_run(folder: Path, learning_rate: float) -> Path:
    """Train a model of some hundred parameters for 24 steps with a checkpoint at every sixth."""
    import torch

    from hnf_offline.record import Recorder
    from hnf_offline.run.model.gpt import GPT, GPTConfig

    config = {
        "vocab_size": 8, "block_size": 4, "n_layer": 1, "n_head": 2, "n_embd": 8, "mlp_width": 8,
        "norm": "none", "tied": False,
    }  # fmt: skip
    torch.manual_seed(0)
    model = GPT(GPTConfig(**config))
    tokens = torch.randint(8, (8, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    settings = {"kind": "Adam", "learning_rate": learning_rate}
    with Recorder(folder, every=6, model={"model_type": "gpt", **config}, optimizer=settings) as recorder:
        recorder.save_batches(tokens, tokens)
        for step in range(1, 25):
            loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.record(step, model, optimizer, loss=float(loss.detach()), learning_rate=learning_rate)
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded run."""
    return _record_run(tmp_path_factory.mktemp("runs") / "tiny", 0.003)


@pytest.fixture(scope="session")
def other_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with ten times the learning rate."""
    return _record_run(tmp_path_factory.mktemp("runs") / "other", 0.03)
