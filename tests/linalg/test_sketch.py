"""Sketches keep inner products: unbiased, with the error they claim, whatever pieces a vector comes in."""

from __future__ import annotations

import math

import pytest
import torch

from hnf_offline.linalg.sketch import BLOCKS, CHUNK, LENGTH, cosines, sketch


def vectors(size: int, count: int = 3) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_short_vector_is_kept_as_it_is() -> None:
    vector = vectors(LENGTH, 1)[0]
    kept = sketch([vector[:100].view(10, 10), vector[100:]], LENGTH, seed=0)
    assert torch.equal(kept, vector[None])
    assert sketch([vectors(LENGTH + 1, 1)[0]], LENGTH + 1, seed=0).shape == (BLOCKS, LENGTH // BLOCKS)


def test_pieces_and_the_chunks_they_fall_into_change_nothing() -> None:
    size = CHUNK + 5_000
    vector = torch.arange(size, dtype=torch.float32).sin()
    whole = sketch([vector], size, seed=3)
    cut = sketch([vector[:7], vector[7 : CHUNK + 10].view(-1, 1), vector[CHUNK + 10 :]], size, seed=3)
    assert torch.allclose(whole, cut, rtol=1e-12, atol=1e-9)
    assert not torch.allclose(whole, sketch([vector], size, seed=4))


def test_a_sketch_is_linear_and_no_entry_is_lost() -> None:
    size = LENGTH + 1_000
    one, other, _ = vectors(size)
    together = sketch([one + 2 * other], size, seed=0)
    assert torch.allclose(together, sketch([one], size, seed=0) + 2 * sketch([other], size, seed=0))
    for place in (0, size - 1):
        unit = torch.zeros(size)
        unit[place] = -3.0
        assert sketch([unit], size, seed=0).square().sum(dim=1).tolist() == [9.0] * BLOCKS


def test_inner_products_are_unbiased_with_the_error_of_so_many_numbers() -> None:
    size = 3 * LENGTH
    pair = vectors(size, 2)
    pair[1] = 0.6 * pair[0] / pair[0].norm() + 0.8 * pair[1] / pair[1].norm()
    pair = pair / pair.norm(dim=1, keepdim=True)
    exact = float(pair[0] @ pair[1])
    found = torch.tensor([
        float((sketch([pair[0]], size, seed) * sketch([pair[1]], size, seed)).sum(dim=1).mean())
        for seed in range(60)
    ])
    claimed = math.sqrt((1 + exact**2) / LENGTH)  # of a projection to so many numbers
    assert abs(float(found.mean()) - exact) < 3 * claimed / math.sqrt(len(found))
    assert float(found.std()) == pytest.approx(claimed, rel=0.3)
    assert claimed < 0.016
    ones = sketch([torch.ones(size)], size, seed=0)
    assert float(ones.square().sum(dim=1).mean()) == pytest.approx(size, rel=0.1), (
        "signs keep a mean from adding up"
    )


def test_cosines_have_a_diagonal_of_ones_and_do_not_know_lengths() -> None:
    size = LENGTH + 10
    kept = torch.stack([
        sketch([scale * one], size, seed=0) for one, scale in zip(vectors(size), (1, 1e4, 1e-6), strict=True)
    ])
    found = cosines(kept)
    assert found.shape == (BLOCKS, 3, 3)
    assert torch.allclose(found.mean(dim=0).diagonal(), torch.ones(3, dtype=torch.float64))
    assert float(found.mean(dim=0).triu(1).abs().max()) < 0.06
