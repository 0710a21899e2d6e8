from __future__ import annotations

import math
import shutil
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest

from hnf_offline.errors import InputError
from hnf_offline.run import open_run
from hnf_offline.run.records import Log

pytest.importorskip("lightning")
pytest.importorskip("tensorboard")
pytestmark = pytest.mark.libraries


Written = dict[int, dict[str, float]]


def float32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def train(
    folder: Path, logger: Any, steps: int, resume: Path | None = None, add: float = 0.0
) -> tuple[Path, Written]:
    """Train a small model with the loss 4 - s / 50 + add; its last checkpoint, and what the logger was given."""
    import torch
    from lightning.pytorch import LightningModule, Trainer

    written: Written = {}
    log_metrics = logger.log_metrics

    def keeping(metrics: dict[str, float], step: int) -> None:
        written.setdefault(step, {}).update(metrics)
        log_metrics(metrics, step)

    logger.log_metrics = keeping

    class Model(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            step = self.global_step
            value = math.nan if step == 4 else 4 - step / 50 + add
            self.log("train_loss", value, prog_bar=False)
            return (self.weight * 0).sum()

        def validation_step(self, batch: Any, number: int) -> None:
            self.log("val_loss", 9.0)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(torch.zeros(10, 1))

        def val_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(torch.zeros(1, 1))

    trainer = Trainer(
        max_steps=steps,
        max_epochs=1_000,
        logger=logger,
        log_every_n_steps=1,
        default_root_dir=folder,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Model(), ckpt_path=None if resume is None else str(resume), weights_only=False)
    saved = folder / "kept" / f"step={steps}.ckpt"
    trainer.save_checkpoint(saved)
    return saved, written


def assert_same(log: Log, *written: Written) -> None:
    wanted: Written = {}
    for part in written:
        wanted |= {step: metrics for step, metrics in part.items() if "train_loss" in metrics}
    assert log.rows["step"].to_list() == sorted(wanted)
    for step, loss, metrics in zip(
        log.rows["step"], log.rows["loss"], map(wanted.get, sorted(wanted)), strict=True
    ):
        assert metrics is not None
        value = metrics["train_loss"]
        assert float32(loss) == float32(value) or (math.isnan(loss) and math.isnan(value)), step


def test_csv_and_tensorboard_loggers_come_back_equal(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    loggers = {
        "csv": CSVLogger(tmp_path / "csv", flush_logs_every_n_steps=7),
        "tb": TensorBoardLogger(tmp_path / "tb"),
    }
    for name, logger in loggers.items():
        _, written = train(tmp_path / name, logger, 30)
        folder = tmp_path / name / "lightning_logs"
        log, above = open_run(folder / "version_0").log, open_run(folder).log
        assert log is not None and above is not None and log.rows.equals(above.rows)
        assert_same(log, written)
        # Lightning counts from 0.
        assert sorted(written) == list(range(30)) and math.isnan(log.rows["loss"][4])
        assert log.restarts == () and log.skipped_lines == 0
        assert log.rows["val_loss"].drop_nulls().to_list() == [9.0] * 3


@pytest.mark.parametrize("name", ["csv", "tb"])
def test_a_resumed_run_goes_on_in_the_next_version(tmp_path: Path, name: str) -> None:
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    kind: Any = CSVLogger if name == "csv" else TensorBoardLogger
    saved, first = train(tmp_path, kind(tmp_path), 20)
    _, second = train(tmp_path, kind(tmp_path), 40, resume=saved, add=1.0)
    shutil.rmtree(tmp_path / "kept")
    log = open_run(tmp_path).log
    assert log is not None and log.rows.height == 40
    assert_same(log, first, second)
    assert [segment.file.parent.name for segment in log.segments if segment.file.is_file()] == (
        ["version_0", "version_1"] if name == "csv" else []
    )

    # A third run from the beginning is another run: then one has to say.
    train(tmp_path, kind(tmp_path), 40, add=2.0)
    shutil.rmtree(tmp_path / "kept")
    with pytest.raises(InputError, match=r"3 logs of the same steps: lightning_logs/version_0"):
        open_run(tmp_path)
    parts = [f"lightning_logs/version_{number}" for number in (0, 1)]
    if name == "csv":
        parts = [f"{part}/metrics.csv" for part in parts]
    (tmp_path / "run.toml").write_text(f"[log]\nfiles = {parts}\n")
    said = open_run(tmp_path).log
    assert said is not None and said.rows.equals(log.rows)
