"""A tiny really-trained run on disk, and copies of it to damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from hnf_offline.linalg.stopping import ACCURACIES, StopRule
from hnf_offline.record import Recorder
from hnf_offline.run.model.gpt import GPT, GPTConfig

CONFIG: dict[str, Any] = {
    "vocab_size": 9, "block_size": 5, "n_layer": 1, "n_head": 2, "n_embd": 8, "mlp_width": 8, "norm": "none",
    "initial_std": 0.3,
}  # fmt: skip
ROWS, STEPS, EVERY = 4, 24, 4


def _record(folder: Path, *, every: int = EVERY, steps: int = STEPS, **shape: Any) -> Path:
    """Train on a fresh batch a step under Adam and record it; the batch file says which rows were which step's."""
    config = {**CONFIG, **shape}
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 9, (steps, ROWS, config["block_size"]), generator=generator)
    module = GPT(GPTConfig(**config)).initialise(torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02, betas=(0.9, 0.98))
    with Recorder(folder, every=every, model={"model_type": "gpt", **config}) as recorder:
        recorder.save_batches(tokens.flatten(0, 1), steps=torch.arange(1, steps + 1).repeat_interleave(ROWS))
        for step in range(1, steps + 1):
            rows = tokens[step - 1]
            loss = functional.cross_entropy(module(rows)[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.record(step, module, optimizer, loss=loss, grad_norm=1.0)
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums are taken in one order, whatever the machine, so that equal means equal."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _beyond_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    """An accuracy that users are not offered, for comparison with dense references."""
    monkeypatch.setitem(ACCURACIES, "converged", StopRule(1e-9, 3, maximum=1000))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def record_run() -> Callable[..., Path]:
    """Recorder of tiny runs: record_run(folder, every=..., steps=..., n_layer=...)."""
    return _record


@pytest.fixture(scope="session")
def _recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _record(tmp_path_factory.mktemp("recorded") / "tiny")


@pytest.fixture
def tiny(_recorded: Path, tmp_path: Path) -> Path:
    """A copy of a run with checkpoints at 4, 8, ..., 24 that a test may damage."""
    return Path(shutil.copytree(_recorded, tmp_path / "tiny"))


def _rewrite(file: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as archive:
        metadata = archive.metadata()
    save_file(change(load_file(file)), file, metadata=metadata)


@pytest.fixture(scope="session")
def rewrite() -> Callable[[Path, Callable[[dict[str, Tensor]], dict[str, Tensor]]], None]:
    """Changer of the tensors of a safetensors file: rewrite(file, tensors -> tensors)."""
    return _rewrite
