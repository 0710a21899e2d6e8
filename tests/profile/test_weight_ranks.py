"""Effective ranks estimated side by side, against all singular values; and a rank that collapses at a usual tier."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from hnf_offline.detect.pathologies import pathologies
from hnf_offline.profile import profile_run
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.profile.weight_ranks import EXACT_DIMENSION, effective_ranks
from hnf_offline.run import open_run


def exact(matrix: torch.Tensor) -> float:
    values = torch.linalg.svdvals(matrix.double())
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (300, 100), (256, 256), (700, 300)])
def test_ranks_of_several_matrices_are_those_of_all_singular_values(rows: int, columns: int) -> None:
    noise = drawn(rows, columns)
    stretched = noise + 0.5 * drawn(rows, 3) @ drawn(3, columns)
    few = drawn(rows, 7) @ drawn(7, columns)
    ranks = effective_ranks(torch.stack([noise, stretched, few]))
    for matrix, (rank, error) in zip((noise, stretched, few), ranks, strict=True):
        assert (error == 0.0) == (columns <= EXACT_DIMENSION or matrix is few) or error < 1e-3 * rank
        assert rank == pytest.approx(exact(matrix), rel=1e-3 if error < 1e-3 * rank else 0.04)


def test_zeros_have_no_rank_and_do_not_disturb_their_like() -> None:
    for columns in (32, 200):
        (none, _), (rank, _) = effective_ranks(torch.stack([torch.zeros(300, columns), drawn(300, columns)]))
        assert none != none
        assert rank == pytest.approx(exact(drawn(300, columns)), rel=0.04)


def test_a_rank_that_collapses_is_found_at_the_forward_tier(tiny: Path, tmp_path: Path) -> None:
    name = "transformer.h.0.mlp.c_fc"
    settings = ProfileSettings(tier="forward", device="cpu")
    healthy = profile_run(open_run(tiny), settings, tmp_path / "healthy").table
    assert not [one for one in pathologies(healthy, pl.DataFrame(), ()) if one.kind == "rank-collapse"]
    run = open_run(tiny)
    for checkpoint in run.checkpoints[2:]:
        file = checkpoint.path / "model.safetensors"
        weights = load_file(file)
        left, values, right = torch.linalg.svd(weights[f"{name}.weight"], full_matrices=False)
        values[1:] *= 0.01
        weights[f"{name}.weight"] = (left * values @ right).contiguous()
        save_file(weights, file)
    found = pathologies(profile_run(open_run(tiny), settings, tmp_path / "out").table, pl.DataFrame(), ())
    (one,) = [one for one in found if one.kind == "rank-collapse"]
    assert (one.layer, one.step) == (name, run.checkpoints[2].step)
