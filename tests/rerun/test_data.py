"""Batches and learning rates of each step."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from safetensors.torch import save_file

from hnf_offline.rerun.data import Rates, StepBatches, cut
from hnf_offline.run.model.loss import count_predicted
from hnf_offline.run.records import Batches, Log

CPU = torch.device("cpu")


@given(
    rows=some.integers(1, 12),
    accumulation=some.integers(1, 5),
    together=some.integers(1, 12),
    seed=some.integers(0, 100),
)
def test_weights_sum_to_one_and_every_row_that_counts_is_there(
    rows: int, accumulation: int, together: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.arange(rows * 4).view(rows, 4)
    labels = torch.where(torch.rand(rows, 4, generator=generator) < 0.5, -100, tokens)
    counted = [count_predicted(tokens[row : row + 1], labels[row : row + 1]) for row in range(rows)]
    if not sum(counted):
        return
    pieces = cut(tokens, labels, accumulation, together, CPU)
    assert sum(piece.weight for piece in pieces) == pytest.approx(1)
    assert all(1 <= len(piece.tokens) <= together for piece in pieces)
    there = torch.cat([piece.tokens for piece in pieces])[:, 0].tolist()
    assert set(there) >= {4 * row for row in range(rows) if counted[row]}
    assert len(there) == len(set(there))


def test_without_accumulation_a_row_counts_by_its_labels() -> None:
    tokens = torch.arange(8).view(2, 4)
    labels = torch.tensor([[0, 1, 2, 3], [0, 1, -100, -100]])
    assert [piece.weight for piece in cut(tokens, labels, 1, 1, CPU)] == [0.75, 0.25]
    assert [piece.weight for piece in cut(tokens, labels, 2, 1, CPU)] == [0.5, 0.5]


def test_memory_cuts_within_a_micro_batch_but_not_its_share() -> None:
    tokens = torch.arange(16).view(4, 4)
    labels = tokens.clone()
    labels[2:, 2:] = -100
    whole, cut_up = cut(tokens, labels, 2, 4, CPU), cut(tokens, labels, 2, 1, CPU)
    assert [piece.weight for piece in whole] == [0.5, 0.5]
    assert [piece.weight for piece in cut_up] == [0.25] * 4


@pytest.fixture
def file(tmp_path: Path) -> Batches:
    path = tmp_path / "batches.safetensors"
    save_file({"input_ids": torch.arange(24, dtype=torch.int32).view(12, 2)}, path)
    return Batches(path, "input_ids", None, 12, 2, rows_per_step=3)


def test_steps_are_read_in_any_order(file: Batches) -> None:
    batches = StepBatches(file, CPU, 8)
    got = [batches.of(step)[0].tokens[0, 0].item() for step in (1, 2, 4, 3, 3, 1)]
    assert got == [0, 6, 18, 12, 12, 0]
    assert [batches.has(step) for step in (0, 1, 4, 5)] == [False, True, True, False]
    assert batches.of(5) == ()
    batches.close()


def test_a_step_read_ahead_is_cut_as_asked(file: Batches) -> None:
    batches = StepBatches(file, CPU, 8)
    batches.of(1)
    assert len(batches.of(2, accumulation=3)) == 3
    assert len(batches.of(3)) == 1
    batches.close()


def log(**columns: list[float | None]) -> Log:
    return Log(pl.DataFrame(columns), ())


def test_rates_between_logged_steps_are_interpolated() -> None:
    rates = Rates(log(step=[10, 12, 20], learning_rate=[1.0, 2.0, None]), 9.0)
    assert [rates.of(step) for step in (5, 10, 11, 12, 30)] == [1.0, 1.0, 1.5, 2.0, 2.0]
    assert rates.of(11, offset=1) == 2.0
    assert rates.of(11, source="saved") == 9.0


def test_without_logged_rates_the_saved_one_holds() -> None:
    for one in (None, log(step=[1], learning_rate=[None])):
        rates = Rates(one, 0.25)
        assert (rates.logged, rates.of(7)) == (False, 0.25)


@given(factor=some.floats(0.01, 100), step=some.integers(0, 30))
def test_scaled_rates_are_scaled_everywhere(factor: float, step: int) -> None:
    rates = Rates(log(step=[10, 12], learning_rate=[1.0, 2.0]), 3.0)
    for source in ("log", "saved"):
        wanted = factor * rates.of(step, source=source)
        assert rates.scaled(factor).of(step, source=source) == pytest.approx(wanted)
