"""Rows of nanoGPT's token files by the places where they begin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hnf_offline.errors import InputError
from hnf_offline.run.batches import describe, find_batches, load_rows
from hnf_offline.run.manifest import Manifest
from hnf_offline.run.model.loss import count_predicted

TOKENS = (np.arange(50) ** 2 % 61).astype(np.uint16)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    TOKENS.tofile(tmp_path / "train.bin")
    return tmp_path / "train.bin"


def said(file: Path, starts: Any, length: int = 6) -> Manifest:
    np.save(file.with_name("starts.npy"), starts)
    return Manifest(batch_file=file, starts=file.with_name("starts.npy"), length=length)


def test_rows_are_numbered_through_the_starts(file: Path) -> None:
    starts = np.array([[0, 9], [43, 5], [9, 9]])
    batches = find_batches(file.parent, said(file, starts))
    assert batches is not None and (batches.rows, batches.length, batches.rows_per_step) == (6, 6, 2)
    assert list(batches.rows_of_step(2)) == [2, 3] and batches.rows_of_step(4) == ()
    tokens, labels = load_rows(batches, [2, 1, 2])
    assert labels is not None and (tokens.dtype, labels.dtype) == (torch.int64, torch.int64)
    for row, start in enumerate((43, 9, 43)):
        assert tokens[row].tolist() == TOKENS[start : start + 6].tolist()
        # nanoGPT: x = data[i : i + T], y = data[i + 1 : i + 1 + T]
        assert labels[row, 1:].tolist() == TOKENS[start + 1 : start + 7].tolist()
        assert labels[row, :-1].tolist() == tokens[row].tolist()
    assert count_predicted(tokens, labels) == 3 * 6
    assert tokens.is_contiguous()
    assert load_rows(batches, [])[0].shape == (0, 6)


def test_starts_of_one_dimension_are_rows(file: Path) -> None:
    batches = describe(file, said(file, np.array([4, 3, 2, 1], dtype=np.uint32)), last_steps=[2])
    assert (batches.rows, batches.rows_per_step) == (4, 2)
    assert load_rows(batches, [3])[0].tolist() == [TOKENS[1:7].tolist()]


def test_a_log_that_counts_from_zero(file: Path) -> None:
    batches = describe(file, said(file, np.array([[0, 9], [3, 5]])), first_logged_step=0)
    assert list(batches.rows_of_step(0)) == [0, 1]


@pytest.mark.parametrize(
    ("starts", "hint"),
    [
        ([[0, 44]], "a row at 44, and train.bin has 50 tokens"),
        ([[0, -1]], "a row at -1"),
        ([[0.0, 1.0]], "not an array of whole numbers"),
        ([[[0]]], "has shape"),
        (np.empty((0, 3), dtype=np.int64), "has shape"),
        (3, "has shape"),
    ],
)
def test_starts_that_are_none(file: Path, starts: Any, hint: str) -> None:
    with pytest.raises(InputError, match=hint) as caught:
        describe(file, said(file, np.array(starts)))
    assert caught.value.path == file.with_name("starts.npy") and caught.value.remedy


def test_pickled_starts_are_refused(file: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return Path.touch, (canary,)

    manifest = said(file, np.array([[0]]))
    np.save(tmp_path / "starts.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="numpy array"):
        describe(file, manifest)
    (tmp_path / "starts.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match="numpy array"):
        describe(file, manifest)
    assert not canary.exists()


def test_files_that_change_later_are_noticed(file: Path) -> None:
    batches = describe(file, said(file, np.array([[0, 9], [43, 5]])))
    said(file, np.array([[0, 9], [44, 5]]))
    with pytest.raises(InputError, match="row 2 at 44"):
        load_rows(batches, [2])
    said(file, np.array([[0, 9]]))
    with pytest.raises(InputError, match="has 2 rows, and had 4"):
        load_rows(batches, [1])


def test_starts_belong_to_flat_files(tmp_path: Path, file: Path) -> None:
    manifest = said(file, np.array([[0]]))
    np.savez(tmp_path / "b.npz", tokens=np.ones((3, 4), dtype=np.int64))
    with pytest.raises(InputError, match="rows of its own"):
        describe(tmp_path / "b.npz", manifest)
    with pytest.raises(InputError, match="no file is named"):
        find_batches(tmp_path, Manifest(starts=manifest.starts, length=3))
