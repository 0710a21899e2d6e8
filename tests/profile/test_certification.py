"""A trained run, profiled as a user does: what says that it is certified is right, and what is wrong does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl
import pytest
import torch

from hnf_offline.profile import profile_run
from hnf_offline.profile.session import open_session, optimizer_of
from hnf_offline.record import Recorder
from hnf_offline.run import open_run
from hnf_offline.run.formats import load_optimizer, load_weights
from hnf_offline.run.model.build import load_weights_into
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.loss import evaluate
from hnf_offline.table import Row
from tests.profile.dense import Figures, Judged, Spectrum, dense_block, judge_against, listing
from tests.profile.judged import settings, structured_rows

CONFIG = {
    "vocab_size": 24, "block_size": 12, "n_layer": 2, "n_head": 3, "n_embd": 24, "mlp_width": 48, "norm": "pre",
    "tied": False, "initial_std": 0.1,
}  # fmt: skip
EVERY, STEPS = 40, 400


def rows_of(seed: int, rows: int) -> torch.Tensor:
    return structured_rows(rows, seed, vocabulary=CONFIG["vocab_size"], length=CONFIG["block_size"])


def train_run(folder: Path) -> Path:
    """A run of 10 checkpoints: from random weights to a model that has learned its rows."""
    module = GPT(GPTConfig(**CONFIG)).initialise(torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(module.parameters(), lr=4e-3, betas=(0.9, 0.98))
    with Recorder(folder, every=EVERY, model={"model_type": "gpt", **CONFIG}) as recorder:
        recorder.save_batches(rows_of(7, 8))
        for step in range(1, STEPS + 1):
            loss = evaluate(module, rows_of(1000 + step, 32), None).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.record(step, module, optimizer, loss=loss)
    return folder


def dense_blocks(folder: Path) -> dict[tuple[int, str], dict[str, Spectrum]]:
    """Dense spectra of every layer at every checkpoint of the run, by (step, layer)."""
    run = open_run(folder)
    session = open_session(run, settings("standard"))
    assert session is not None and len(session.training_batches) == 1
    found: dict[tuple[int, str], dict[str, Spectrum]] = {}
    for point in run.checkpoints:
        load_weights_into(session.module, load_weights(point))
        state, reason = optimizer_of(session, run, point, load_optimizer(point))
        assert not reason
        for layer in session.layers:
            found[point.step, layer.path] = dense_block(
                session.module, layer, session.batch.tokens, state=state
            )
    return found


def judge_table(
    table: pl.DataFrame, truths: Mapping[tuple[int, str], Mapping[str, Spectrum]]
) -> list[Judged]:
    """Hold a profile's table against the dense spectra."""
    rows: dict[tuple[int, str], list[Row]] = {}
    for row in table.rows(named=True):
        rows.setdefault((row["step"], row["layer"]), []).append(Row(**row))
    return [
        one
        for (step, layer), spectra in truths.items()
        for one in judge_against(
            rows[step, layer],
            {(matrix, layer): spectrum for matrix, spectrum in spectra.items()},
            f"step {step}",
        )
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture(scope="module")
def truths(trained: Path) -> dict[tuple[int, str], dict[str, Spectrum]]:
    return dense_blocks(trained)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("accuracy", ["standard", "certified"])
def test_every_layer_of_a_trained_run(
    accuracy: str,
    trained: Path,
    truths: dict[tuple[int, str], dict[str, Spectrum]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    profile = profile_run(open_run(trained), settings(accuracy), tmp_path / "out")
    assert profile.skipped == () and profile.computed == STEPS // EVERY
    judged = judge_table(profile.table, truths)
    ends = [one for one in judged if one.dominant]
    assert len(truths) >= 200 and len(ends) == 2 * len(truths) and len(judged) == 3 * len(truths)
    with capsys.disabled():
        print(f"\n{accuracy}, dominant ends: {Figures.of(ends)}")
        print(f"{accuracy}, both ends: {Figures.of(judged)}")
    figures = Figures.of(judged)
    assert figures.certified_off_one <= 0.01, listing([one for one in judged if one.certified], 0.01)
    assert figures.certified_off_five == 0, listing([one for one in judged if one.certified], 0.05)
    assert Figures.of(ends).certified >= 0.9 * len(ends)
