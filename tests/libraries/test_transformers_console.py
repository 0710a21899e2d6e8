"""What the Trainer prints and what it saves are the same log."""

from __future__ import annotations

from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytestmark = pytest.mark.libraries

from transformers import Trainer, TrainingArguments  # noqa: E402

from hnf_offline.run.logs import read_log  # noqa: E402


class Regression(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.linear(x) - labels).square().mean()}


def trained(folder: Path, *, bar: bool) -> tuple[Path, Path]:
    torch.manual_seed(0)
    rows = [{"x": torch.randn(4), "labels": torch.randn(1)} for _ in range(64)]
    console = folder / "console.log"
    with console.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        arguments = TrainingArguments(
            str(folder / "run"), per_device_train_batch_size=4, num_train_epochs=2, logging_steps=3,
            eval_strategy="steps", eval_steps=10, save_strategy="no", report_to="none", use_cpu=True,
            disable_tqdm=not bar,
        )  # fmt: skip
        trainer = Trainer(Regression(), arguments, train_dataset=rows, eval_dataset=rows[:16])
        trainer.train()
    state = folder / "run" / "trainer_state.json"
    trainer.state.save_to_json(str(state))
    return console, state


def test_console_rows_have_the_steps_of_the_progress_bar(tmp_path: Path) -> None:
    console, state = (read_log(path) for path in trained(tmp_path, bar=True))
    assert console.formats == ("console_rows",) and state.formats == ("trainer_state",)
    assert (
        console.rows["step"].to_list()
        == state.rows["step"].to_list()
        == [3, 6, 9, 10, 12, 15, 18, 20, 21, 24, 27, 30, 32]
    )
    assert console.rows["loss"].count() == state.rows["loss"].count() == 10
    for name in ("loss", "grad_norm", "eval_loss"):
        for said, saved in zip(console.rows[name], state.rows[name], strict=True):
            assert said == (None if saved is None else pytest.approx(saved, rel=1e-3))


def test_without_a_bar_the_rows_are_counted_and_that_is_said(tmp_path: Path) -> None:
    console, state = (read_log(path) for path in trained(tmp_path, bar=False))
    losses = state.rows["loss"].drop_nulls().to_list()
    assert console.rows["step"].to_list() == list(range(1, 11))
    assert console.rows["loss"].to_list() == pytest.approx(losses, rel=1e-3)
    assert "a step here is a row of the log" in console.notes[0]
