"""Scaled dot-product attention that is read while it is computed, a stretch at a time.

Torch's own kernels either show no scores or keep all of them. Here a few sequences or heads are scored, read, and used,
in a buffer that stays in the processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hnf_offline.quantities.attention import AttentionRows

#: Scores that are held at once: half a megabyte of them on a CPU; elsewhere enough to keep a device busy.
_SCORES_CPU, _SCORES = 1 << 17, 1 << 26


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, AttentionRows] | None:
    """Attend as `torch.nn.functional.scaled_dot_product_attention` does, whose arguments these are.

    Returns:
        Its output, and what the rows of attention come to; None for a call that is not covered.
    """
    if dropout_p or (is_causal and attn_mask is not None) or not _covered(query, key, value, enable_gqa):
        return None
    if is_causal:
        seen = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
        attn_mask = seen.tril()
    return attended(query, key, value, attn_mask, scale)


def _covered(query: Tensor, key: Tensor, value: Tensor, grouped: bool) -> bool:
    same = all(one.ndim == 4 and one.dtype == query.dtype for one in (query, key, value))
    if not same or query.dtype not in {torch.float32, torch.float64}:
        return False
    heads = query.shape[1], key.shape[1], value.shape[1]
    fits = heads[0] % heads[1] == 0 == heads[0] % heads[2] if grouped else len(set(heads)) == 1
    return fits and query.shape[0] == key.shape[0] == value.shape[0]


def attended(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, AttentionRows]:
    """Attend, and read every row of attention.

    Args:
        query: [batch, heads, queries, size], float32 or float64.
        key: [batch, heads or a divisor of them, keys, size].
        value: [batch, heads or a divisor of them, keys, width].
        mask: broadcasts to [batch, heads, queries, keys]: True where a key is seen, or what is added to the scores.
        scale: of the scores; None for 1 / sqrt(size).

    Returns:
        [batch, heads, queries, width], zero for queries that see no key; and the rows.
    """
    batch, heads, queries, size = query.shape
    keys, dtype = key.shape[-2], query.dtype
    query = query * (size**-0.5 if scale is None else scale)
    several = torch.full((queries, 1), keys > 1, device=query.device)
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, float("-inf"))
        several = (mask > torch.finfo(dtype).min / 2).expand(*mask.shape[:-1], keys).sum(-1, keepdim=True) > 1
        mask = mask.expand(batch, heads, queries, keys)
    # [batch * heads, length, size]
    queried, keyed, valued = (
        one.repeat_interleave(heads // one.shape[1], dim=1).flatten(0, 1) for one in (query, key, value)
    )
    output = queried.new_empty(batch * heads, queries, value.shape[-1])
    highest, total, product = (queried.new_empty(batch * heads, queries, 1) for _ in range(3))
    # Below the smallest normal number an exponential takes many times as long, and adds nothing to its row.
    floor = math.log(torch.finfo(dtype).tiny) + 0.5
    stretches = list(_stretches(batch, heads, queries * keys, query.device))
    most = max((_length(rows) * _length(some) for rows, some in stretches), default=0)
    buffers = [queried.new_empty(most, queries, keys) for _ in range(2)]
    for rows, some in stretches:
        shape = _length(rows), _length(some)
        first = rows.start * heads + some.start
        place = slice(first, first + shape[0] * shape[1])
        below, weights = (buffer[: shape[0] * shape[1]] for buffer in buffers)
        torch.bmm(queried[place], keyed[place].mT, out=below)
        if mask is not None:
            below.view(*shape, queries, keys).add_(mask[rows, some])
        torch.amax(below, dim=-1, keepdim=True, out=highest[place])
        below.sub_(highest[place]).clamp_(min=floor)
        torch.exp(below, out=weights)
        torch.sum(weights, dim=-1, keepdim=True, out=total[place])
        torch.bmm(weights, valued[place], out=output[place])
        torch.sum(below.mul_(weights), dim=-1, keepdim=True, out=product[place])
    # As torch has it: a query whose keys are all masked by minus infinity gets nothing.
    output.div_(total).masked_fill_(highest.isneginf(), 0.0)
    # log A_ij = (z_ij - m) - log sum_j exp(z_ij - m), m the highest of the row.
    entropy = total.log() - product / total
    blind = highest <= torch.finfo(dtype).min / 2
    highest, total, entropy, seeing = (
        one.reshape(batch, heads, queries)
        for one in (
            highest.masked_fill(blind, float("-inf")),
            total.reciprocal(),
            entropy.masked_fill_(blind, float("nan")),
            ~blind & highest.isfinite(),
        )
    )
    found = AttentionRows(highest, total, entropy, several.squeeze(-1) & seeing)
    return output.reshape(batch, heads, queries, -1), found


def _length(stretch: slice) -> int:
    return int(stretch.stop - stretch.start)


def _stretches(batch: int, heads: int, scores: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Cut the batch into what is attended at once; where one sequence is too much, its heads."""
    together = max(1, (_SCORES_CPU if device.type == "cpu" else _SCORES) // max(1, scores))
    for first in range(0, batch, rows := max(1, together // heads)):
        for head in range(0, heads, some := min(together, heads)):
            yield slice(first, min(first + rows, batch)), slice(head, min(head + some, heads))
