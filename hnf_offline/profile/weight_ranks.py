"""Effective ranks of all weight matrices, cheaply enough for every tier: matrices of one shape go side by side."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from hnf_offline.profile.snapshot import matrix_of
from hnf_offline.quantities.registry import catalogue
from hnf_offline.run.model.layers import Layer
from hnf_offline.table import Row

#: Up to so many rows or columns, whichever are fewer, all singular values are computed.
EXACT_DIMENSION = 128
#: Start vectors of larger matrices, and products with each.
PROBES, STEPS = 4, 10
#: Directions that are taken out first and counted exactly: a few large ones would make the estimate a lottery.
LEADING, POWER_STEPS = 16, 2
#: Bytes of matrices that go side by side.
_TOGETHER = 256 << 20


def rank_rows(step: int, layers: Sequence[Layer], parameters: Mapping[str, Tensor]) -> list[Row]:
    """Estimate the effective rank of every layer's largest matrix.

    Args:
        step: of the checkpoint.
        layers: where its parameters belong.
        parameters: by name, all finite.

    Returns:
        Rows `weight.effective_rank`, certified where all singular values were computed; else their error bar is two
        standard errors over start vectors, beside which a spectrum over many decades reads up to 40 % too high, at
        every checkpoint alike. None of a matrix of zeros.
    """
    alike: dict[tuple[int, ...], list[tuple[Layer, Tensor]]] = defaultdict(list)
    for layer in layers:
        gathered = ((part, part.gather(parameters[part.parameter].detach())) for part in layer.parts)
        matrices = [one for part, own in gathered if (one := matrix_of(part, own)) is not None]
        if matrices:
            largest = max(matrices, key=torch.numel).detach().float()
            largest = largest if largest.shape[0] >= largest.shape[1] else largest.T
            alike[tuple(largest.shape)].append((layer, largest))
    name = catalogue()["weight.effective_rank"].name
    rows: list[Row] = []
    for shape, group in alike.items():
        together = max(1, _TOGETHER // (4 * math.prod(shape)))
        for start in range(0, len(group), together):
            part = group[start : start + together]
            ranks = effective_ranks(torch.stack([matrix for _, matrix in part]))
            for (layer, _), (rank, error) in zip(part, ranks, strict=True):
                if math.isfinite(rank):
                    low, high = (None, None) if error == 0.0 else (rank - 2 * error, rank + 2 * error)
                    place = layer.path, layer.kind, layer.depth
                    row = Row(step, *place, name, rank, low, high, certified=error == 0.0)
                    rows.append(row)
    return rows


def effective_ranks(matrices: Tensor, seed: int = 0) -> list[tuple[float, float]]:
    """Estimate exp(-sum p_i log p_i), p_i = s_i / sum_j s_j, of several matrices of one shape.

    With T = tr(A^1/2) and U = tr(A^1/2 log A^1/2), A = W'W, the entropy is log T - U / T; both traces come from one
    stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017) beside the leading singular vectors, which are counted
    exactly (Meyer et al. 2021, Hutch++, arXiv 2010.09649). The start vectors are the same at every checkpoint, so
    that their error does not pass for a change.

    Args:
        matrices: [n, rows, columns], no more columns than rows, float32.
        seed: of the start vectors.

    Returns:
        Of each matrix the rank and its standard error, 0.0 where all singular values were computed; NaN for zeros.
    """
    columns = matrices.shape[2]
    if columns <= EXACT_DIMENSION:
        wide = matrices.double()
        squares = torch.linalg.eigvalsh(wide.mT @ wide).clamp_min(0).cpu()
        weights = torch.ones_like(squares)
        return [_rank(one[None], weight[None]) for one, weight in zip(squares, weights, strict=True)]
    generator = torch.Generator().manual_seed(seed)
    leading = _leading(matrices, torch.randn(LEADING, columns, generator=generator).to(matrices))
    top = torch.linalg.svdvals((leading @ matrices.mT).double()).square().cpu()
    signs = torch.randint(0, 2, (PROBES, columns), generator=generator).to(matrices) * 2 - 1
    nodes, weights = _quadratures(matrices, leading, signs - (signs @ leading.mT) @ leading)
    ones = torch.ones(PROBES, LEADING)
    return [
        _rank(torch.cat([one.expand(PROBES, -1), other], dim=1), torch.cat([ones, weight], dim=1))
        for one, other, weight in zip(top, nodes, weights, strict=True)
    ]


# Vectors are rows here: a product with few columns is three times slower than one with few rows.


def _images(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (vectors @ matrices.mT) @ matrices


def _leading(matrices: Tensor, start: Tensor) -> Tensor:
    # Orthonormal vectors near the leading right singular ones, [n, LEADING, columns], by power steps.
    basis = start.expand(len(matrices), *start.shape)
    for _ in range(POWER_STEPS):
        basis = torch.linalg.qr(_images(matrices, basis).mT).Q.mT
    return basis


def _quadratures(matrices: Tensor, leading: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    # Ritz values of W'W beside its leading part, and their weights, from every start vector, [n, probes, steps].
    def beside_leading(image: Tensor) -> Tensor:
        return image - (image @ leading.mT) @ leading

    size = start.norm(dim=2, keepdim=True)
    vector = start / size
    basis = [vector]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for step in range(STEPS):
        image = beside_leading(_images(matrices, vector))
        diagonal.append((image * vector).sum(dim=2))
        if step + 1 == STEPS:
            break
        for _ in range(2):
            for known in basis:
                image = image - known * (known * image).sum(dim=2, keepdim=True)
            image = beside_leading(image)
        length = image.norm(dim=2, keepdim=True)
        beside.append(length[..., 0])
        vector = image / length.clamp_min(torch.finfo(image.dtype).tiny)
        basis.append(vector)
    off = torch.stack(beside, dim=2).double().cpu()
    tridiagonal = torch.diag_embed(torch.stack(diagonal, dim=2).double().cpu())
    values, vectors = torch.linalg.eigh(tridiagonal + torch.diag_embed(off, 1) + torch.diag_embed(off, -1))
    return values.clamp_min(0), vectors[..., 0, :].square() * size.double().cpu().square()


def _rank(squares: Tensor, weights: Tensor) -> tuple[float, float]:
    # [probes, nodes]; the error by leaving out one probe at a time.
    roots = squares.sqrt()
    sums = (weights * roots).sum(dim=1)
    logs = (weights * torch.special.xlogy(roots, roots)).sum(dim=1)
    rank = _of_traces(float(sums.sum()) / len(sums), float(logs.sum()) / len(sums))
    if len(sums) == 1:
        return rank, 0.0
    others = list(_without_one(sums, logs))
    mean = sum(others) / len(others)
    return rank, math.sqrt(sum((one - mean) ** 2 for one in others) * (len(others) - 1) / len(others))


def _without_one(sums: Tensor, logs: Tensor) -> Iterator[float]:
    for left_out in range(len(sums)):
        keep = torch.arange(len(sums)) != left_out
        yield _of_traces(float(sums[keep].mean()), float(logs[keep].mean()))


def _of_traces(total: float, logs: float) -> float:
    return math.exp(math.log(total) - logs / total) if total > 0 else math.nan
