"""Attention, as every softmax over keys sees it.

`attention_rows` is an `AttentionRows`: what each query's scores and attention come to, in one pass over them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from torch import Tensor

SATURATED = 0.99
#: How far below the highest score of its row a score counts as masked.
_MASKED = -1e30


@dataclass(frozen=True, slots=True)
class AttentionRows:
    """Scores z and attention A = softmax(z) of every query, over its keys.

    Attributes:
        highest: max_j z_ij, [batch, heads, queries]; minus infinity for a query that sees no key.
        largest: max_j A_ij, [batch, heads, queries].
        entropy: -sum_j A_ij log A_ij, [batch, heads, queries]; NaN for a query that sees no key.
        several: whether at least two keys are seen, [batch, heads, queries].
    """

    highest: Tensor
    largest: Tensor
    entropy: Tensor
    several: Tensor


def attention_rows(scores: Tensor, attention: Tensor | None = None) -> AttentionRows:
    """Read every row of attention once.

    With m the row's highest score, log A_ij = (z_ij - m) + log max_j A_ij, so that the entropy is a sum of terms of one
    sign: -log max_j A_ij + sum_j A_ij (m - z_ij).

    Args:
        scores: [batch, heads, queries, keys], what enters the softmax; a masked key has minus infinity, or (as some
            libraries have it) the dtype's most negative number or half of it.
        attention: their softmax, where it is known already.

    Returns:
        The rows.
    """
    import torch

    if attention is None:
        attention = scores.softmax(dim=-1)
    highest = scores.amax(dim=-1)
    blind = highest <= torch.finfo(scores.dtype).min / 2
    below = (scores - highest.unsqueeze(-1)).clamp_(min=_MASKED)
    largest = attention.amax(dim=-1)
    entropy = -largest.log() - torch.einsum("bhqk,bhqk->bhq", attention, below)
    # Every masked key adds the same huge number, beside which all others are nothing: that counts them.
    keys = scores.shape[-1]
    several = (below.sum(dim=-1) > _MASKED * (keys - 1.5)) & ~blind
    return AttentionRows(
        highest.masked_fill(blind, float("-inf")), largest, entropy.masked_fill(blind, float("nan")), several
    )


@quantity(
    "attention.logit_max",
    unit="nats",
    formula="max_ij <q_i, k_j> / sqrt(d_head) over unmasked pairs, worst head",
    reference="Wortsman et al. 2023, Small-scale proxies (arXiv 2309.14322), section 3.1",
    tier="forward",
    layers="every softmax over keys",
    over_batches="max",
    worst_head="max",
    bands=(1e2, 1e3, 1e4),
    reading="Growth over hundreds of steps is the warning; in the source's runs all above 1e4 diverged.",
    cannot="Says nothing of a spike within the next tens of steps; the level depends on model and task.",
)
def attention_logit_max(attention_rows: AttentionRows) -> Tensor:
    """Largest attention score of each head.

    Returns:
        [heads].
    """
    return attention_rows.highest.amax(dim=(0, 2))


@quantity(
    "attention.entropy",
    unit="nats",
    formula="mean_i of -sum_j A_ij log A_ij, lowest head",
    reference="Zhai et al. 2023, sigmaReparam (arXiv 2303.06296), section 3",
    tier="forward",
    layers="every softmax over keys",
    worst_head="min",
    reading="Near 0: a head looks at one token only (entropy collapse); compare with its own past.",
    cannot="A low entropy alone is no fault: some heads are meant to be sharp.",
)
def attention_entropy(attention_rows: AttentionRows) -> Tensor:
    """Mean entropy of each head's attention rows; rows with every key masked do not count.

    Returns:
        [heads]; NaN for a head with a score that is NaN, and for one that sees no key at all.
    """
    return _unless_broken(attention_rows, attention_rows.entropy.nanmean(dim=(0, 2)))


@quantity(
    "attention.saturation",
    unit="share",
    formula="share of attention rows with max_j A_ij > 0.99 among rows that see at least two keys, worst head",
    reference="definition; motive: Zhai et al. 2023 (arXiv 2303.06296)",
    tier="forward",
    layers="every softmax over keys",
    worst_head="max",
    reading="Share of queries that copy one key; a rise from the run's own level shows saturation.",
    cannot="Cannot tell useful copying from collapse.",
)
def attention_saturation(attention_rows: AttentionRows) -> Tensor:
    """Share of saturated rows of each head.

    Returns:
        [heads]; NaN for a head with a score that is NaN.
    """
    several = attention_rows.several
    saturated = (attention_rows.largest > SATURATED) & several
    share = saturated.sum(dim=(0, 2)) / several.sum(dim=(0, 2)).clamp_min(1)
    return _unless_broken(attention_rows, share)


def _unless_broken(rows: AttentionRows, values: Tensor) -> Tensor:
    """What heads have, [heads], but NaN where a score is: neither a mean over other rows nor a share would show it."""
    return values.masked_fill(rows.highest.amax(dim=(0, 2)).isnan(), float("nan"))
