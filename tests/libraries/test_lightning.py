"""Checkpoints of the real Lightning Trainer, read back; and the black box inside of it."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

lightning = pytest.importorskip("lightning")

from hnf_offline.run import load_weights, open_run  # noqa: E402
from hnf_offline.run.formats import configuration, find  # noqa: E402
from hnf_offline.run.model.build import build_model  # noqa: E402
from hnf_offline.run.model.gpt import GPT, GPTConfig  # noqa: E402
from hnf_offline.run.records import ModelSource  # noqa: E402

from .reading_back import check_optimizer, check_weights, snapshot, state_of  # noqa: E402

pytestmark = [
    pytest.mark.libraries,
    pytest.mark.filterwarnings("ignore"),
]
SIZES = {"vocab_size": 32, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 8}


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Module(lightning.LightningModule):
    """A GPT as an attribute, and a buffer beside it."""

    def __init__(self, learning_rate: float = 0.01, extra: Any = None, **sizes: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = GPT(GPTConfig.from_mapping(sizes)).initialise(torch.Generator().manual_seed(0))
        self.learning_rate = learning_rate

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        logits = self.model(batch)
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=0.2)


class TwoOptimizers(Module):
    """Matrices by SGD, the rest by Adam: two optimizers, stepped by hand."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, index: int) -> None:
        loss = super().training_step(batch, index)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        parameters = list(self.model.parameters())
        return [
            torch.optim.SGD([p for p in parameters if p.ndim > 1], lr=0.01, momentum=0.9),
            torch.optim.Adam([p for p in parameters if p.ndim < 2], lr=0.02),
        ]


class Watch(lightning.Callback):
    """Keeps what the live objects hold after every step."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, Tensor]] = {}
        self.states: dict[int, list[dict[str, dict[str, Tensor]]]] = {}

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.weights[trainer.global_step] = snapshot(module.model)
        self.states[trainer.global_step] = [
            state_of(module.model, getattr(optimizer, "optimizer", optimizer))
            for optimizer in trainer.optimizers
        ]


def fit(
    folder: Path, module: Any, *, steps: int = 4, callbacks: tuple[Any, ...] = (), **saving: Any
) -> Watch:
    watch = Watch()
    tokens = torch.randint(0, 32, (64, 8), generator=torch.Generator().manual_seed(1))
    saver = lightning.pytorch.callbacks.ModelCheckpoint(
        dirpath=folder, every_n_train_steps=2, save_top_k=-1, **saving
    )
    lightning.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[watch, saver, *callbacks], default_root_dir=folder,
    ).fit(module, torch.utils.data.DataLoader(tokens, batch_size=4))  # fmt: skip
    return watch


@pytest.mark.parametrize("link", [False, "link"], ids=["alone", "last"])
def test_what_lightning_saves_is_read_back_equal(tmp_path: Path, link: Any) -> None:
    watch = fit(tmp_path, Module(**SIZES), save_last=link or None)
    run = open_run(tmp_path)
    assert [(checkpoint.step, checkpoint.layout) for checkpoint in run.checkpoints] == [
        (2, "lightning"),
        (4, "lightning"),
    ]
    assert [checkpoint.path.name for checkpoint in run.checkpoints] == [
        "epoch=0-step=2.ckpt",
        "epoch=0-step=4.ckpt",
    ]
    # The hyper-parameters have all sizes of the built-in model, and its names lie below `model.`.
    assert run.model is not None and run.model.kind == "gpt"
    assert run.configuration["training.learning_rate"] == 0.01
    assert run.configuration["optimizer.weight_decay"] == 0.2
    for checkpoint in run.checkpoints:
        assert all(name.startswith("model.") for name in load_weights(checkpoint))
        module = build_model(run.model, device=torch.device("cpu"), dtype=torch.float32)
        live = watch.weights[checkpoint.step]
        check_weights(checkpoint, module, live)
        check_optimizer(checkpoint, live, watch.states[checkpoint.step][0], "adamw")


def test_names_of_a_users_own_say_no_step(tmp_path: Path) -> None:
    fit(tmp_path, Module(**SIZES), filename="best-{epoch}", save_weights_only=True)
    checkpoints, skipped = find(tmp_path)
    # The second save took the place of the first: the step is only inside.
    assert [(one.path.name, one.step, one.optimizer_files) for one in checkpoints] == [
        ("best-epoch=0.ckpt", 4, ())
    ]
    assert skipped == []


def test_several_optimizers_are_one_state(tmp_path: Path) -> None:
    watch = fit(tmp_path, TwoOptimizers(**SIZES), steps=4)
    checkpoint = find(tmp_path)[0][-1]
    live = watch.weights[checkpoint.step]
    both = {**watch.states[checkpoint.step][0], **watch.states[checkpoint.step][1]}
    source = ModelSource("gpt", SIZES)
    check_weights(checkpoint, build_model(source, device=torch.device("cpu"), dtype=torch.float32), live)
    state = check_optimizer(checkpoint, live, both, "other")
    rates = {name: own.learning_rate for name, own in state.parameters.items()}
    assert all(rate == (0.01 if live[name].ndim > 1 else 0.02) for name, rate in rates.items())


def test_hyper_parameters_of_a_class_are_refused_by_name(tmp_path: Path) -> None:
    fit(tmp_path, Module(extra=argparse.Namespace(a=1), **SIZES), steps=2)
    checkpoints, skipped = find(tmp_path)
    assert checkpoints == [] and "argparse.Namespace" in skipped[0].reason
    assert "safetensors" in skipped[0].remedy


def test_the_conversion_of_a_refused_file_works(tmp_path: Path) -> None:
    import subprocess
    import sys

    watch = fit(tmp_path, Module(extra=argparse.Namespace(a=1), **SIZES), steps=2)
    line = find(tmp_path)[1][0].remedy.split("python -c ", 1)[1].strip('"')
    subprocess.run([sys.executable, "-c", line], cwd=tmp_path, check=True)
    (tmp_path / "epoch=0-step=2.ckpt").unlink()
    (checkpoint,), _ = find(tmp_path)
    assert checkpoint.step == 2
    assert torch.equal(
        load_weights(checkpoint)["model.transformer.wte.weight"], watch.weights[2]["transformer.wte.weight"]
    )


def test_settings_are_read_without_the_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(tmp_path, Module(**SIZES), steps=2)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a tensor was read"))
    (checkpoint,), _ = find(tmp_path)
    assert configuration(checkpoint)["model"]["n_embd"] == 8


def test_the_black_box_in_the_real_trainer(tmp_path: Path) -> None:
    from hnf_offline.record.lightning_callback import FlightRecorderCallback

    recorder = FlightRecorderCallback(tmp_path / "box", keep=8, state_every=4, after=2)
    watch = fit(tmp_path / "saved", Module(**SIZES), steps=8, callbacks=(recorder,))
    assert recorder.box is not None
    run = open_run(recorder.box.freeze("asked for"))
    assert run.checkpoints and run.batches is not None
    last = run.checkpoints[-1]
    read = load_weights(last)
    assert any(
        torch.equal(value, watch.weights[last.step]["transformer.wte.weight"]) for value in read.values()
    )
