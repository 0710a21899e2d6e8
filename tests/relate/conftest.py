from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from hnf_offline.table import table

from .planted import rows

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def real_log() -> pl.DataFrame:
    """The log of the unmodified HF Trainer run."""
    file = DATA / "runs" / "hf_trainer_llama_spike" / "checkpoint-300" / "trainer_state.json"
    if not file.exists():
        pytest.skip("the real run is not here")
    history = json.loads(file.read_text())["log_history"]
    names = ("step", "loss", "grad_norm", "learning_rate")
    return pl.DataFrame([{name: row[name] for name in names} for row in history if "loss" in row])


@pytest.fixture(scope="session")
def real_profile() -> pl.DataFrame:
    """S as measured on that run (science notes 7.1)."""
    ratio = {50: 0.30, 100: 0.39, 130: 0.57, 140: 0.59, 150: 11.9, 160: 0.16}
    ratio |= {170: 0.10, 200: 0.19, 210: 0.29, 220: 0.35, 300: 0.30}
    rates = [5e-2 if step == 150 else 5e-3 for step in ratio]
    limits = [rate / value for rate, value in zip(rates, ratio.values(), strict=True)]
    steps = list(ratio)
    return table([
        *rows("hessian.stability_ratio", steps, list(ratio.values())),
        *rows("optimizer.learning_rate", steps, rates),
        *rows("optimizer.largest_stable_lr", steps, limits),
        *rows("optimizer.headroom", steps, [1 / value for value in ratio.values()]),
    ])
