"""The metrics.csv of Lightning's CSVLogger, and the progress bar that it prints."""

from __future__ import annotations

from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")
pytestmark = pytest.mark.libraries

import lightning  # noqa: E402
from lightning.pytorch.callbacks import TQDMProgressBar  # noqa: E402
from lightning.pytorch.loggers import CSVLogger  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from hnf_offline.run.logs import read_log  # noqa: E402


class Regression(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)
        self.losses: list[float] = []

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        loss = (self.linear(batch[0]) - batch[1]).square().mean()
        self.losses.append(float(loss))
        self.log("train_loss", loss, prog_bar=True)
        self.log("lr", 0.1)
        return loss

    def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
        self.log("val_loss", (self.linear(batch[0]) - batch[1]).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_metrics_and_progress_bar(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(40, 4), torch.randn(40, 1))
    model = Regression()
    console = tmp_path / "console.log"
    with console.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        trainer = lightning.Trainer(
            max_epochs=3, log_every_n_steps=1, accelerator="cpu", enable_checkpointing=False,
            enable_model_summary=False, logger=CSVLogger(tmp_path), callbacks=[TQDMProgressBar(refresh_rate=1)],
            default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(model, DataLoader(data, batch_size=4), DataLoader(data, batch_size=20))
    log = read_log(next(tmp_path.rglob("metrics.csv")))
    assert log.rows["step"].to_list() == list(range(30)) and log.columns["loss"] == "train_loss"
    assert log.rows["loss"].to_list() == pytest.approx(model.losses, rel=1e-4)
    assert log.rows["learning_rate"].to_list() == pytest.approx([0.1] * 30)
    assert log.rows["val_loss"].count() == 3 and log.duplicates == 0
    shown = read_log(console)
    assert shown.formats == ("key_value",) and shown.duplicates == 0
    # The bar counts the batches that are done, so from 1, and three digits are shown.
    assert shown.rows["step"].to_list() == list(range(1, 31))
    assert shown.rows["loss"].to_list() == pytest.approx(model.losses, rel=2e-2, abs=1e-3)
