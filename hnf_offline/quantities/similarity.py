"""How much two successive blocks' outputs have in common.

`sequences` and `sequences_before` are [..., sequences, tokens, width]: the first four that are replayed, of each at
most 512 tokens, evenly spaced; or what was read of them. Everything is measured within each sequence and averaged.
"""

from __future__ import annotations

from functools import cached_property
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


class Compared:
    """Blocks' outputs [..., sequences, tokens, width], read once: what one block gives out is what the next one takes.

    Attributes:
        values: the tensor.
    """

    def __init__(self, values: Tensor) -> None:
        """Hold the streams; nothing is read yet.

        Args:
            values: [..., sequences, tokens, width].
        """
        self.values = values

    @staticmethod
    def of(values: Tensor | Compared) -> Compared:
        """Take streams as they are, or as they were read already.

        Returns:
            What was given, where it is of this class.
        """
        return values if isinstance(values, Compared) else Compared(values)

    def successive(self) -> tuple[Compared, Compared]:
        """Split streams of blocks in order into what each block but the first takes, and what it gives out.

        Returns:
            All but the last, and all but the first; what is read of them is read now.
        """
        before, after = Compared(self.values[:-1]), Compared(self.values[1:])
        for name in ("gram", "columns", "dependence", "component", "apart"):
            read = getattr(self, name)
            setattr(before, name, read[:-1])
            setattr(after, name, read[1:])
        return before, after

    @cached_property
    def centred(self) -> Tensor:
        """The streams less their mean over the tokens, float64."""
        wide = self.values.double()
        return wide - wide.mean(dim=-2, keepdim=True)

    @cached_property
    def gram(self) -> Tensor:
        """Inner products of tokens without those with themselves, [..., sequences, tokens, tokens]."""
        gram = self.centred @ self.centred.mT
        gram.diagonal(dim1=-2, dim2=-1).zero_()
        return gram

    @cached_property
    def columns(self) -> Tensor:
        """Sums of the Gram matrix over its rows or columns, [..., sequences, tokens]."""
        return self.gram.sum(dim=-1)

    @cached_property
    def dependence(self) -> Tensor:
        """HSIC of each stream with itself, [..., sequences]."""
        return _unbiased_hsic(self, self)

    @cached_property
    def component(self) -> Tensor:
        """Scores of the tokens along the leading principal component, [..., sequences, tokens]."""
        return _principal_component(self.centred)

    @cached_property
    def apart(self) -> Tensor:
        """Distances between these scores, [..., sequences, tokens, tokens]."""
        return _distances(self.component)


def _unbiased_hsic(one: Compared, other: Compared) -> Tensor:
    """Unbiased Hilbert-Schmidt independence criterion of Gram matrices without diagonal, [..., sequences]."""
    n = one.gram.shape[-1]
    shared = _shared(one.gram, other.gram)
    sums = one.columns.sum(dim=-1) * other.columns.sum(dim=-1) / ((n - 1) * (n - 2))
    cross = (one.columns * other.columns).sum(dim=-1) * 2 / (n - 2)
    return (shared + sums - cross) / (n * (n - 3))


def _shared(gram: Tensor, other: Tensor) -> Tensor:
    """Sums of products of entries, [...]; with NumPy on a CPU, which takes a quarter of torch's time."""
    import torch

    if gram.device.type != "cpu":
        return (gram.flatten(-2).unsqueeze(-2) @ other.flatten(-2).unsqueeze(-1)).squeeze((-2, -1))
    return torch.as_tensor(np.einsum("...ij,...ij->...", gram.numpy(), other.numpy()))


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
def linear_cka(sequences_before: Tensor | Compared, sequences: Tensor | Compared) -> Tensor:
    """Linear centred kernel alignment between the inputs and outputs of a block, unbiased in the tokens.

    Returns:
        [...], about 0 for independent streams whatever the width; NaN for fewer than 4 tokens.
    """
    before, after = Compared.of(sequences_before), Compared.of(sequences)
    cross = _unbiased_hsic(before, after)
    return (cross / (before.dependence.sqrt() * after.dependence.sqrt())).mean(dim=-1)


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
def principal_information(sequences_before: Tensor | Compared, sequences: Tensor | Compared) -> Tensor:
    """Mutual information between the first principal components of a block's inputs and outputs.

    Returns:
        [...]; may be slightly negative for independent ones; NaN for fewer than 5 tokens.
    """
    return _information(Compared.of(sequences_before).apart, Compared.of(sequences).apart).mean(dim=-1)


def nearest_neighbour_information(x: Tensor, y: Tensor) -> Tensor:
    """Estimate the mutual information of two scalars from nearest neighbours.

    Args:
        x: [..., n], without ties.
        y: [..., n], without ties.

    Returns:
        [...], in nats; NaN for n of at most `NEIGHBOURS` + 1.

    Source: Kraskov, Stoegbauer & Grassberger 2004 (arXiv cond-mat/0305641), algorithm 1.
    """
    return _information(_distances(x), _distances(y))


def _distances(scalars: Tensor) -> Tensor:
    """Distances between all of [..., n], [..., n, n]."""
    return (scalars.unsqueeze(-1) - scalars.unsqueeze(-2)).abs_()


def _information(apart_x: Tensor, apart_y: Tensor) -> Tensor:
    """Mutual information of two scalars whose distances are given, [...]."""
    import torch

    n = apart_x.shape[-1]
    if n <= NEIGHBOURS + 1:
        return torch.full_like(apart_x[..., 0, 0], torch.nan)
    radius = _distance_to_neighbour(torch.maximum(apart_x, apart_y))
    # The counts hold the point itself, which is the "+ 1" of the formula.
    within = [_count(apart < radius).clamp_min(1).to(apart_x.dtype) for apart in (apart_x, apart_y)]
    constants = torch.digamma(apart_x.new_tensor([float(NEIGHBOURS), float(n)])).sum()
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


def _principal_component(centred: Tensor) -> Tensor:
    """Scores of the tokens along each sequence's leading principal component, scaled to unit variance."""
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
