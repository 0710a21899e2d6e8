"""What the how-to pages tell to write beside the trainers of other libraries works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hnf_offline.run import open_run
from tests.docs.pages import commands_of

from .following import HOW_TO, batches, loss_of, my_model, python_of, run_blocks, stability_of


@pytest.mark.libraries
def test_the_hugging_face_trainer(desk: Path, hnf: Callable[[str], str]) -> None:
    pytest.importorskip("accelerate")
    page = f"{HOW_TO}/hugging-face-trainer.md"
    run_blocks(page, desk, **hugging_face())
    run = open_run("outputs/my-run")
    assert [one.step for one in run.checkpoints] == [10, 20, 30, 40, 50, 60] and run.missing == ()
    assert run.log is not None and run.log.rows.height == 60
    assert {"loss", "grad_norm", "learning_rate"} <= set(run.log.rows.columns)
    report, _of_adapters = commands_of(page)  # tests/libraries/test_peft.py has runs for the other
    assert "S was 0 at checkpoint 60, at most" in " ".join(hnf(report).split())
    assert stability_of("my-run").height == 6


@pytest.mark.libraries
def test_the_black_box_of_the_hugging_face_trainer(desk: Path, hnf: Callable[[str], str]) -> None:
    pytest.importorskip("accelerate")
    space = hugging_face()
    first = python_of(f"{HOW_TO}/hugging-face-trainer.md")[0].partition("Trainer(model")[0]
    exec(first, space)
    (text,) = [one for one in python_of(f"{HOW_TO}/black-box.md") if "transformers_callback" in one]
    exec(text + "    box = recorder.box.freeze('asked for')\n", space)
    assert "● Exact: 12 losses" in hnf(f"hnf zoom {space['box']} --from 0 --to 12 --every 6")


def hugging_face() -> dict[str, Any]:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    rows = [row for batch in batches() for row in batch]
    return {
        "Trainer": transformers.Trainer,
        "TrainingArguments": transformers.TrainingArguments,
        "model": transformers.AutoModelForCausalLM.from_config(config),
        "dataset": [{"input_ids": row, "labels": row} for row in rows],
    }


def lightning_script(desk: Path) -> dict[str, Any]:
    lightning = pytest.importorskip("lightning")
    inner = my_model(f"{HOW_TO}/lightning.md", desk)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = inner

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            loss = loss_of(self.model, batch)
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    tokens = torch.cat(batches())
    loader = torch.utils.data.DataLoader(tokens, batch_size=4)
    return {"Trainer": lightning.Trainer, "module": Module(), "loader": loader, "tokens": tokens}


@pytest.mark.libraries
@pytest.mark.filterwarnings("ignore")
def test_lightning(desk: Path, hnf: Callable[[str], str]) -> None:
    page = f"{HOW_TO}/lightning.md"
    run_blocks(page, desk, **lightning_script(desk))
    run = open_run("runs/mine")
    assert [one.step for one in run.checkpoints] == [10, 20, 30, 40, 50, 60]
    assert run.log is not None and run.log.rows.height == 60 and "learning_rate" in run.log.rows.columns
    (report,) = commands_of(page)
    hnf(report)
    assert stability_of("mine").height == 6


@pytest.mark.libraries
@pytest.mark.filterwarnings("ignore")
def test_the_black_box_of_lightning(desk: Path, hnf: Callable[[str], str]) -> None:
    (text,) = [one for one in python_of(f"{HOW_TO}/black-box.md") if "lightning_callback" in one]
    space = lightning_script(desk)
    exec(compile(text, "black-box.md", "exec"), space)
    box = space["recorder"].box.freeze("asked for")
    assert "● Exact: 12 losses" in hnf(f"hnf zoom {box} --from 0 --to 12 --every 6 --model my_model:build")
