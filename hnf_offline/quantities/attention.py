"""Attention scores, as every softmax over keys sees them.

`attention_logits` are the scores that enter the softmax, [batch, heads, queries, keys], minus infinity where
masked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from torch import Tensor

SATURATED = 0.99


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
def attention_logit_max(attention_logits: Tensor) -> Tensor:
    """Largest attention score of each head.

    Returns:
        [heads].
    """
    return attention_logits.amax(dim=(0, 2, 3))


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
def attention_entropy(attention_logits: Tensor) -> Tensor:
    """Mean entropy of each head's attention rows; rows with every key masked do not count.

    Returns:
        [heads].
    """
    log_probability = attention_logits.log_softmax(dim=-1)
    # 0 log 0 = 0 where a key is masked; a row that sees nothing is NaN throughout and is left out.
    row_entropy = -(log_probability.exp() * log_probability.clamp_min(-1e30)).sum(dim=-1)
    return row_entropy.nanmean(dim=(0, 2))


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
def attention_saturation(attention_logits: Tensor) -> Tensor:
    """Share of saturated rows of each head.

    Returns:
        [heads].
    """
    largest = attention_logits.softmax(dim=-1).amax(dim=-1)  # [batch, heads, queries]
    several_keys = (attention_logits > float("-inf")).sum(dim=-1) >= 2
    saturated = (largest > SATURATED) & several_keys
    return saturated.sum(dim=(0, 2)) / several_keys.sum(dim=(0, 2)).clamp_min(1)
