"""Runs that trainers and loggers write while they are followed: what is told is what the finished run gives."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.follow.conftest import Grown
from tests.follow.test_follow import SPIKY, afterwards

pytestmark = pytest.mark.libraries

LOSSES = {row["step"]: row for row in map(json.loads, (SPIKY / "log.jsonl").read_text().splitlines())}


@pytest.fixture
def grown(tmp_path: Path) -> Grown:
    (tmp_path / "runs" / "live").mkdir(parents=True)
    return Grown(tmp_path / "runs" / "live", tmp_path / "out")


class Turns:
    """A trainer in a thread of its own that works only while the monitor pauses."""

    def __init__(self, train: Callable[[Callable[[], None]], None]) -> None:
        self._mine, self._theirs = threading.Semaphore(0), threading.Semaphore(0)
        self._ended = False
        self._failed: list[BaseException] = []

        def work() -> None:
            self._theirs.acquire()
            try:
                train(self._pause)
            except BaseException as error:
                self._failed.append(error)
            self._ended = True
            self._mine.release()

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def _pause(self) -> None:
        self._mine.release()
        self._theirs.acquire()

    def script(self, rest: int = 0) -> Iterator[Callable[[], None]]:
        """Let it work up to its next pause; then look so many times more."""
        while not self._ended:
            yield self._work
            yield from [lambda: None] * rest
        assert not self._failed, self._failed

    def _work(self) -> None:
        if not self._ended:
            self._theirs.release()
            assert self._mine.acquire(timeout=120)


def spikes(lines: list[str]) -> list[str]:
    return [line.split(":")[0] for line in lines if line.startswith("[SPIKE]")]


def test_tensorboard(grown: Grown, capsys: pytest.CaptureFixture[str]) -> None:
    """Written through a queue and a buffer, so cut anywhere; and add_scalars in folders of its own."""
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    def train(pause: Callable[[], None]) -> None:
        with SummaryWriter(str(grown.run / "runs" / "a"), max_queue=3) as writer:
            for step in range(1, 481):
                writer.add_scalar("train/loss", LOSSES[step]["loss"], step)
                writer.add_scalar("train/grad_norm", LOSSES[step]["grad_norm"], step)
                writer.add_scalars("rates", {"encoder": 0.1, "decoder": 0.2}, step)
                if step % 25 == 0:
                    pause()
                if step % 100 == 0:
                    writer.flush()
                    pause()

    told = grown.follow(Turns(train).script(), idle=1_000)
    assert told == afterwards(grown.run, "stability", capsys)
    assert spikes(told) == ["[SPIKE] Step 210", "[SPIKE] Step 392"]
    assert not any("RESTART" in line for line in told) and grown.notes == []
    assert len(grown.told) > 2, "on the way, not at the end"


def test_tensorboard_resumed_in_a_file_of_its_own(grown: Grown, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    def train(pause: Callable[[], None]) -> None:
        for first, last in ((1, 260), (241, 420)):
            with SummaryWriter(str(grown.run), filename_suffix=f".{first}") as writer:
                for step in range(first, last + 1):
                    writer.add_scalar("loss", LOSSES[step]["loss"], step)
                    if step % 30 == 0:
                        writer.flush()
                        pause()

    told = grown.follow(Turns(train).script(), idle=1_000)
    assert spikes(told) == ["[SPIKE] Step 210", "[SPIKE] Step 392"]
    assert sorted(told) == sorted(afterwards(grown.run, "stability", capsys))
    assert sum("RESTART] Step 241" in line for line in told) == 1


#: In a process of its own: wandb keeps a service running in the one that logs.
_WANDB = """
import json, os, sys
os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_ERROR_REPORTING="false")
import wandb
run = wandb.init(project="p", id="abc", dir=sys.argv[1], settings=wandb.Settings(x_disable_stats=True))
for line in sys.stdin:
    for row in json.loads(line):
        wandb.log({"train/loss": row["loss"], "train/grad_norm": row["grad_norm"], "train/global_step": row["step"]})
    print("done", flush=True)
wandb.finish()
print("done", flush=True)
"""


def test_wandb_offline(grown: Grown, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb")
    output = grown.run.parent / "printed"
    with (
        output.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-c", _WANDB, str(grown.run)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1,
        ) as process,
    ):  # fmt: skip
        assert process.stdin is not None and process.stdout is not None

        def train(pause: Callable[[], None]) -> None:
            assert process.stdin is not None and process.stdout is not None
            for first in range(1, 481, 40):
                process.stdin.write(json.dumps([LOSSES[step] for step in range(first, first + 40)]) + "\n")
                assert process.stdout.readline() == "done\n", output.read_text()
                pause()
            process.stdin.close()
            assert process.stdout.readline() == "done\n", output.read_text()

        told = grown.follow(Turns(train).script(), idle=1_000)
    assert told == afterwards(grown.run, "stability", capsys)
    assert spikes(told) == ["[SPIKE] Step 210", "[SPIKE] Step 392"]
    assert not any("RESTART" in line for line in told)


def test_the_trainer_of_transformers(
    grown: Grown, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at while a checkpoint has its weights and not yet its optimizer, and as each step ends."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from .reading_back import LLAMA
    from .test_transformers import Rows, model_of

    halves: list[set[str]] = []

    def train(pause: Callable[[], None]) -> None:
        saved = transformers.Trainer._save_optimizer_and_scheduler

        def saving(self: Any, folder: str) -> None:
            halves.append({file.name for file in Path(folder).iterdir()})
            pause()
            saved(self, folder)
            pause()

        monkeypatch.setattr(transformers.Trainer, "_save_optimizer_and_scheduler", saving)

        class Look(transformers.TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **live: Any) -> None:
                if state.global_step == 80:
                    with torch.no_grad():
                        for parameter in live["model"].parameters():
                            parameter.mul_(4)  # the next loss is far above all before
                if state.global_step > 70:
                    pause()

        arguments = transformers.TrainingArguments(
            output_dir=str(grown.run), max_steps=96, save_steps=12, logging_steps=1, seed=3, learning_rate=0.05,
            per_device_train_batch_size=4, report_to="none", use_cpu=True, disable_tqdm=True, save_total_limit=None,
        )  # fmt: skip
        trainer = transformers.Trainer(
            model=model_of(LLAMA), args=arguments, train_dataset=Rows(), callbacks=[Look()]
        )
        trainer.train()
        trainer.save_state()

    rows = torch.stack([Rows()[number]["input_ids"] for number in range(16)]).numpy()
    import numpy as np

    np.savez(grown.run / "batches.npz", input_ids=rows)
    told = grown.follow(Turns(train).script(), tier="gradient", idle=1_000)
    assert halves and all("model.safetensors" in half and "optimizer.pt" not in half for half in halves)
    assert grown.measured == list(range(12, 97, 12)), "each once, in order, and whole"
    assert [note for note in grown.notes if not note.endswith("waiting for it")] == []
    assert told == afterwards(grown.run, "gradient", capsys)
    assert spikes(told) == ["[SPIKE] Step 81"] and not any("RESTART" in line for line in told)


def test_metrics_csv_of_lightning(grown: Grown, capsys: pytest.CaptureFixture[str]) -> None:
    """Written every so many steps, and written anew, header and all, where validation brings a new metric."""
    pytest.importorskip("lightning")
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.loggers import CSVLogger

    class Model(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            self.log("train_loss", LOSSES[self.global_step + 1]["loss"])
            return (self.weight * 0).sum()

        def validation_step(self, batch: Any, number: int) -> None:
            self.log("val_loss", 9.0)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(torch.zeros(10, 1))

        def val_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(torch.zeros(1, 1))

    def train(pause: Callable[[], None]) -> None:
        class Look(Callback):
            def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
                if trainer.global_step % 20 == 0:
                    pause()

        Trainer(
            max_steps=480, max_epochs=1_000, logger=CSVLogger(str(grown.run), flush_logs_every_n_steps=30),
            log_every_n_steps=1, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
            check_val_every_n_epoch=5, enable_checkpointing=False, callbacks=[Look()], num_sanity_val_steps=0,
        ).fit(Model())  # fmt: skip

    told = grown.follow(Turns(train).script(), idle=1_000)
    assert told == afterwards(grown.run, "stability", capsys)
    assert spikes(told)[0] in {"[SPIKE] Step 209", "[SPIKE] Step 210"} and len(spikes(told)) == 2
    assert not any("RESTART" in line for line in told)
    assert len(grown.told) > 2, "on the way, not at the end"
