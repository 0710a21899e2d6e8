"""How much two successive blocks' outputs have in common.

`sequences` and `sequences_before` are [..., sequences, tokens, width]: the first four that are replayed, of each at
most 512 tokens, evenly spaced. Everything is measured within each sequence and averaged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from torch import Tensor

_LAYERS = "every block but the first; on the first four sequences"
#: Neighbours that the estimate of mutual information counts to.
NEIGHBOURS = 3
#: Power steps to the leading principal component: enough where the second is below 0.9 of it.
_POWER_STEPS = 30


def _unbiased_hsic(left: Tensor, right: Tensor) -> Tensor:
    """Unbiased Hilbert-Schmidt independence criterion of Gram matrices without diagonal, [..., n, n]."""
    n = left.shape[-1]
    shared = (left * right).sum(dim=(-2, -1))
    columns = left.sum(dim=-2), right.sum(dim=-2)
    sums = columns[0].sum(dim=-1) * columns[1].sum(dim=-1) / ((n - 1) * (n - 2))
    cross = (columns[0] * columns[1]).sum(dim=-1) * 2 / (n - 2)
    return (shared + sums - cross) / (n * (n - 3))


def _gram(stream: Tensor) -> Tensor:
    wide = stream.double()
    centred = wide - wide.mean(dim=-2, keepdim=True)
    gram = centred @ centred.mT
    gram.diagonal(dim1=-2, dim2=-1).zero_()
    return gram


@quantity(
    "similarity.cka",
    unit="1",
    formula="HSIC_1(K, L) / sqrt(HSIC_1(K, K) HSIC_1(L, L)), K = X X', L = Y Y' without diagonals, HSIC_1 "
    "unbiased; mean over sequences",
    reference="Kornblith et al. 2019 (arXiv 1905.00414); unbiased form: Nguyen, Raghu & Kornblith 2021 (arXiv "
    "2010.15327), "
    "section 2, equation 3",
    tier="forward",
    layers=_LAYERS,
    reading="1: the block leaves all relations between tokens as they are; near 0: it replaces them.",
    cannot="Large directions decide it: a few massive activations can hold it at 1 while everything else changes.",
)
def linear_cka(sequences_before: Tensor, sequences: Tensor) -> Tensor:
    """Linear centred kernel alignment between the inputs and outputs of a block, unbiased in the tokens.

    Returns:
        [...], about 0 for independent streams whatever the width; NaN for fewer than 4 tokens.
    """
    left, right = _gram(sequences_before), _gram(sequences)
    cross = _unbiased_hsic(left, right)
    return (cross / (_unbiased_hsic(left, left).sqrt() * _unbiased_hsic(right, right).sqrt())).mean(dim=-1)


@quantity(
    "similarity.information",
    unit="nats",
    formula="psi(k) + psi(n) - mean_i (psi(n_x(i) + 1) + psi(n_y(i) + 1)), k = 3, of the first principal "
    "components x, y "
    "of two blocks' outputs over n tokens",
    reference="Kraskov, Stoegbauer & Grassberger 2004 (arXiv cond-mat/0305641), equation 8; "
    "training-stability catalogue "
    "(source document), information flow analysis, which names no estimator",
    tier="forward",
    layers=_LAYERS,
    reading="A lower bound of what the two blocks' outputs share (data processing); compare with its own past.",
    cannot="Biased low once the information nears log n (6.2 nats at 512 tokens; Gao et al. 2015, arXiv "
    "1411.2003), and "
    "one direction says nothing of the others; tokens of a sequence are not independent.",
)
def principal_information(sequences_before: Tensor, sequences: Tensor) -> Tensor:
    """Mutual information between the first principal components of a block's inputs and outputs.

    Returns:
        [...]; may be slightly negative for independent ones; NaN for fewer than 5 tokens.
    """
    return nearest_neighbour_information(
        _principal_component(sequences_before.double()), _principal_component(sequences.double())
    ).mean(dim=-1)


def nearest_neighbour_information(x: Tensor, y: Tensor) -> Tensor:
    """Estimate the mutual information of two scalars from nearest neighbours.

    Args:
        x: [..., n], without ties.
        y: [..., n], without ties.

    Returns:
        [...], in nats; NaN for n of at most `NEIGHBOURS` + 1.

    Source: Kraskov, Stoegbauer & Grassberger 2004 (arXiv cond-mat/0305641), algorithm 1.
    """
    import torch

    n = x.shape[-1]
    if n <= NEIGHBOURS + 1:
        return torch.full_like(x[..., 0], torch.nan)
    apart_x, apart_y = ((one.unsqueeze(-1) - one.unsqueeze(-2)).abs_() for one in (x, y))
    radius = _distance_to_neighbour(torch.maximum(apart_x, apart_y))
    # The counts hold the point itself, which is the "+ 1" of the formula.
    within = [_count(apart < radius).clamp_min(1).to(x.dtype) for apart in (apart_x, apart_y)]
    constants = torch.digamma(x.new_tensor([float(NEIGHBOURS), float(n)])).sum()
    return constants - (torch.digamma(within[0]) + torch.digamma(within[1])).mean(dim=-1)


def _count(chosen: Tensor) -> Tensor:
    """How many are chosen, over the last dimension; with NumPy on a CPU, which takes half of torch's time."""
    import torch

    on_cpu = chosen.device.type == "cpu"
    counts: Tensor = (
        torch.from_numpy(np.count_nonzero(chosen.numpy(), axis=-1)) if on_cpu else chosen.sum(dim=-1)
    )
    return counts


def _distance_to_neighbour(apart: Tensor) -> Tensor:
    """Distance from each point to its k-th neighbour, [..., n, 1]; the nearest one is the point itself."""
    import torch

    if apart.device.type == "cpu":  # where torch takes four times as long
        return torch.from_numpy(np.partition(apart.numpy(), NEIGHBOURS, axis=-1)[..., NEIGHBOURS, None])
    return apart.topk(NEIGHBOURS + 1, dim=-1, largest=False).values.amax(dim=-1, keepdim=True)


def _principal_component(stream: Tensor) -> Tensor:
    """Scores of the tokens along each sequence's leading principal component, scaled to unit variance."""
    centred = stream - stream.mean(dim=-2, keepdim=True)
    # Started at the token that is furthest from the mean: no random numbers, and rarely orthogonal to the answer.
    furthest = centred.square().sum(dim=-1).argmax(dim=-1)[..., None, None]
    direction = centred.gather(-2, furthest.expand(*centred.shape[:-2], 1, centred.shape[-1])).mT
    # X'X d, or XX' for what X makes of d, whichever of the two is smaller.
    wide = centred.shape[-1] > centred.shape[-2]
    kernel = centred @ centred.mT if wide else centred.mT @ centred
    direction = centred @ direction if wide else direction
    # No eigenvalue exceeds the trace and the largest is at least trace / size: after all steps nothing has left a
    # float64's range, so the length is put right once.
    kernel = kernel / kernel.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[..., None, None]
    direction = direction / direction.norm(dim=-2, keepdim=True)
    for _ in range(_POWER_STEPS):
        direction = kernel @ direction
    direction = direction / direction.norm(dim=-2, keepdim=True)
    scores = (direction if wide else centred @ direction).squeeze(-1)
    scaled: Tensor = scores / scores.std(dim=-1, keepdim=True)
    return scaled
