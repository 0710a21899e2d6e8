"""Which rows are replayed, and how they are cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hnf_offline.profile.batch import DEFAULT_TOKENS, ReplayBatch, choose_rows
from hnf_offline.run.records import Batches

CPU = torch.device("cpu")


def source(rows: int, length: int, rows_per_step: int | None = None) -> Batches:
    return Batches(Path("batches.npz"), "tokens", None, rows, length, rows_per_step)


def replayed(rows: int, length: int = 3) -> ReplayBatch:
    return ReplayBatch.of(torch.arange(rows * length).reshape(rows, length), None, "all rows")


def test_two_training_batches_are_replayed_where_their_size_is_known() -> None:
    assert choose_rows(source(100, 8, rows_per_step=6), None) == tuple(range(12))
    assert choose_rows(source(6, 8, rows_per_step=6), None) == tuple(range(6))


def test_otherwise_a_fixed_number_of_tokens() -> None:
    assert choose_rows(source(10_000, 64), None) == tuple(range(DEFAULT_TOKENS // 64))
    assert choose_rows(source(3, 64), None) == (0, 1, 2)
    assert choose_rows(source(3, 1_000_000), None) == (0,), "one row at least, however long"


def test_the_user_may_ask_for_as_many_as_there_are() -> None:
    assert choose_rows(source(10, 4, rows_per_step=2), 5) == (0, 1, 2, 3, 4)
    assert choose_rows(source(10, 4), 50) == tuple(range(10))


@given(rows=st.integers(1, 20), together=st.integers(1, 25))
def test_cutting_loses_and_repeats_nothing(rows: int, together: int) -> None:
    batch = replayed(rows)
    pieces = batch.cut(together, CPU)
    assert torch.equal(torch.cat([piece.tokens for piece in pieces]), batch.tokens)
    assert all(len(piece.tokens) <= together for piece in pieces)
    assert sum(piece.weight for piece in pieces) == pytest.approx(1.0)


def test_a_micro_batch_weighs_what_it_predicts() -> None:
    tokens = torch.zeros(3, 4, dtype=torch.int64)
    labels = tokens.clone()
    labels[0, 2:] = -100  # one position of the shifted three is left
    labels[1] = -100  # nothing is
    pieces = ReplayBatch.of(tokens, labels, "rows").cut(1, CPU)
    assert [piece.weight for piece in pieces] == [0.25, 0.75]
    assert torch.equal(pieces[1].labels, labels[2:])
    labels[:] = -100
    assert ReplayBatch.of(tokens, labels, "rows").cut(1, CPU) == ()


def test_rows_are_dealt_into_batches_of_the_size_the_optimizer_saw() -> None:
    batch = replayed(6)
    first, second, third = batch.training_batches(2)
    assert torch.equal(torch.cat([first.tokens, second.tokens, third.tokens]), batch.tokens)
    assert first.name == "rows 0-1 of all rows" and third.name == "rows 4-5 of all rows"
    assert len({one.digest for one in (batch, first, second, third)}) == 4


@pytest.mark.parametrize("rows", [0, 4, 6, 7])
def test_rows_that_make_no_whole_batches_stay_together(rows: int) -> None:
    batch = replayed(6)
    assert batch.training_batches(rows) == (batch,)


def test_the_digest_is_of_tokens_and_labels() -> None:
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    same = ReplayBatch.of(tokens.clone(), None, "another name")
    assert same.digest == ReplayBatch.of(tokens, None, "a name").digest
    other = tokens.clone()
    other[1, 2] = 1
    assert ReplayBatch.of(other, None, "a name").digest != same.digest
    assert ReplayBatch.of(tokens, tokens, "a name").digest != same.digest
    assert ReplayBatch.of(tokens, tokens, "a").digest != ReplayBatch.of(tokens, other, "a").digest
