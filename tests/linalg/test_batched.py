"""Rows in lock-step: lengths, exhaustion, orthogonality."""

from __future__ import annotations

import math

import torch

from hnf_offline.linalg.batched import orthogonalised, split_length, unit


def test_unit_rows_have_length_one_zero_stays_zero_and_nan_is_told() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [math.inf, 1.0]])
    found = unit(rows)
    assert torch.allclose(found[0], torch.tensor([0.6, 0.8]))
    assert found[1].tolist() == [0.0, 0.0]
    assert found[2].isnan().any()


def test_orthogonalised_rows_are_so_even_where_nearly_nothing_is_left() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(3, 30, 5, generator=generator)).Q.mT
    rows = basis.sum(dim=1) + 1e-5 * torch.randn(3, 30, generator=generator)
    found = unit(orthogonalised(rows, basis))
    assert float(torch.einsum("bkn,bn->bk", basis, found).abs().max()) < 1e-5


def test_what_is_rounding_of_an_items_own_scale_counts_as_zero() -> None:
    rows = torch.tensor([[1e-9, 0.0], [1e-9, 0.0], [math.nan, 0.0]], dtype=torch.float32)
    length, direction, scale = split_length(rows, torch.tensor([1.0, 1e-9, 1.0]))
    assert length[:2].tolist() == [0.0, torch.tensor(1e-9).item()]
    assert direction[:2].tolist() == [[0.0, 0.0], [1.0, 0.0]]
    assert scale[0] == 1.0
    assert length[2].isnan()
