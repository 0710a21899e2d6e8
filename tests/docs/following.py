"""The blocks of the how-to pages, run around a tiny model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor
from torch.nn import functional

from tests.docs.pages import blocks_of

HOW_TO = "docs/how-to"
STEPS = 40


def python_of(page: str) -> list[str]:
    return [block.text for block in blocks_of(page, "python")]


def run_blocks(page: str, desk: Path, which: slice = slice(None), **known: Any) -> dict[str, Any]:
    """Run a page's blocks one after the other; one that begins with a file's name is written there."""
    for text in python_of(page)[which]:
        named = re.match(r"# (\w+\.py)\n", text)
        if named:
            (desk / named[1]).write_text(text)
        else:
            exec(compile(text, page, "exec"), known)
    return known


def my_model(page: str, desk: Path) -> Any:
    (text,) = [one for one in python_of(page) if one.startswith("# my_model.py")]
    (desk / "my_model.py").write_text(text)
    space: dict[str, Any] = {"__name__": "my_model"}
    exec(compile(text, page, "exec"), space)
    return space["build"]()


def loss_of(model: Any, tokens: Tensor) -> Tensor:
    return functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 32, (4, 8), generator=generator) for _ in range(STEPS)]


def script(model: Any) -> dict[str, Any]:
    """What a training script has before the lines of a page come into it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
    return {
        "torch": torch,
        "model": model,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "loss_of": loss_of,
        "batches": batches(),
        "loader": batches(),
    }


def stability_of(report: str) -> pl.DataFrame:
    table = pl.read_parquet(f"reports/{report}/profile.parquet")
    return table.filter((pl.col("quantity") == "hessian.stability_ratio") & (pl.col("layer") == ""))
