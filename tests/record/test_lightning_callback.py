"""The Lightning callback against a stand-in trainer that calls the hooks in Lightning's order.

Lightning itself is not among the development tools; the stand-in divides the loss by the accumulation, clips after
`on_before_optimizer_step` and counts `global_step` in updates, as Lightning 2 does with automatic optimization.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hnf_offline.errors import InputError, UsageError
from hnf_offline.run import open_run

from .loops import Small, draw, make

KEEP = {"keep": 24, "state_every": 8, "after": 4}


@pytest.fixture
def callbacks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The callback's module, imported with a Callback class of nothing in Lightning's place."""
    package, inner = ModuleType("lightning"), ModuleType("lightning.pytorch")
    inner.Callback = type("Callback", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning", package)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", inner)
    from hnf_offline.record import lightning_callback

    yield lightning_callback
    monkeypatch.delitem(sys.modules, "hnf_offline.record.lightning_callback")


def trainer_of(optimizer: torch.optim.Optimizer, **changes: Any) -> Any:
    given = {
        "is_global_zero": True, "optimizers": [optimizer], "global_step": 0, "precision": "bf16-mixed",
        "gradient_clip_val": 1.0, "gradient_clip_algorithm": "norm", "accumulate_grad_batches": 2, "world_size": 1,
    }  # fmt: skip
    return SimpleNamespace(**(given | changes))


def fit(callback: Any, batches: int) -> tuple[list[float], list[float], Small]:
    module, optimizer = make()
    trainer = trainer_of(optimizer)
    losses, norms, parts = [], [], []
    if callback is not None:
        callback.on_train_start(trainer, module)
    for index in range(batches):
        tokens = draw(index)
        if callback is not None:
            callback.on_train_batch_start(trainer, module, tokens, index)
        loss = functional.cross_entropy(module(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()) / 2
        loss.backward()
        parts.append(loss.detach())
        if index % 2:
            if callback is not None:
                callback.on_before_optimizer_step(trainer, module, optimizer)
            norms.append(float(nn.utils.clip_grad_norm_(module.parameters(), 1.0)))
            optimizer.step()
            optimizer.zero_grad()
            trainer.global_step += 1
            losses.append(float(torch.stack(parts[-2:]).sum()))
        if callback is not None:
            callback.on_train_batch_end(trainer, module, {"loss": parts[-1]}, tokens, index)
    return losses, norms, module


def test_steps_are_updates_and_their_rows_all_micro_batches(callbacks: Any, tmp_path: Path) -> None:
    callback = callbacks.FlightRecorderCallback(tmp_path / "box", **KEEP, training={"seed": 3})
    losses, norms, _ = fit(callback, 20)
    run = open_run(callback.box.freeze("look"))
    callback.on_train_end(None, None)
    assert run.log is not None and run.batches is not None
    assert run.log.rows["step"].to_list() == list(range(1, 11))
    assert run.log.rows["loss"].to_list() == pytest.approx(losses, rel=1e-7)
    assert run.log.rows["grad_norm"].to_list() == pytest.approx(norms, rel=1e-6)
    assert len(run.batches.rows_of_step(4)) == 8
    settings = run.configuration
    assert settings["training.accumulation"] == settings["training.accumulate_grad_batches"] == 2
    assert settings["training.max_grad_norm"] == 1.0
    assert settings["training.precision"] == "bfloat16" and settings["training.seed"] == 3


def test_training_is_bitwise_the_same_with_and_without(callbacks: Any, tmp_path: Path) -> None:
    losses, _, one = fit(callbacks.FlightRecorderCallback(tmp_path / "box", **KEEP), 40)
    others, _, other = fit(None, 40)
    assert losses == others
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_an_exception_freezes_and_several_optimizers_are_refused(callbacks: Any, tmp_path: Path) -> None:
    module, optimizer = make()
    trainer = trainer_of(optimizer)
    callback = callbacks.FlightRecorderCallback(tmp_path / "box", **KEEP)
    callback.on_train_start(trainer, module)
    callback.on_train_batch_start(trainer, module, {"input_ids": draw(1)}, 0)
    callback.on_exception(trainer, module, RuntimeError("lost"))
    (folder,) = callback.box.frozen
    run = open_run(folder)
    assert run.batches is not None and len(run.batches.rows_of_step(1)) == 4
    with pytest.raises(UsageError, match="one optimizer"):
        callback.on_train_start(trainer_of(optimizer, optimizers=[optimizer, optimizer]), module)


def test_batches_of_the_usual_shapes_are_understood(callbacks: Any) -> None:
    tokens, labels = torch.ones(2, 3), torch.zeros(2, 3)
    parts: list[tuple[Tensor | None, ...]] = [
        callbacks.parts_of_batch(tokens),
        callbacks.parts_of_batch((tokens, labels)),
        callbacks.parts_of_batch({"input_ids": tokens, "labels": labels}),
    ]
    assert parts == [(tokens, None, None), (tokens, labels, None), (tokens, labels, None)]
    with pytest.raises(InputError, match="no tokens"):
        callbacks.parts_of_batch({"image": tokens})


WITHOUT = """
import sys
sys.modules["lightning"] = sys.modules["pytorch_lightning"] = None
try:
    import hnf_offline.record.lightning_callback
except Exception as error:
    print(type(error).__name__, error)
"""


def test_without_lightning_the_extra_is_named() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingExtraError") and "hnf_offline[lightning]" in done.stdout
