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
#: Queries of a stretch with keys of its own at least, and stretches at most.
_QUERIES, _STRETCHES = 64, 8


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
    found = []
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
    for some, reach in _reaches(query.shape[-2], key.shape[-2], mask):
        own = None if mask is None else mask.expand(*mask.shape[:-2], query.shape[-2], -1)[..., some, :reach]
        found.append(_attended(query[:, :, some], key[:, :, :reach], value[:, :, :reach], own, scale))
    if len(found) == 1:
        return found[0]
    outputs, rows = zip(*found, strict=True)
    together = (
        torch.cat([getattr(one, name) for one in rows], dim=-1)
        for name in ("highest", "largest", "entropy", "several")
    )
    return torch.cat(outputs, dim=-2), AttentionRows(*together)


def _reaches(queries: int, keys: int, mask: Tensor | None) -> list[tuple[slice, int]]:
    """Cut the queries where an earlier one sees no late keys, which are then left out: of causal attention nearly half.

    Returns:
        Stretches of queries, and how many keys are enough for each; all of them on a device, which would have to be
        waited for.
    """
    if mask is None or mask.device.type != "cpu" or queries < 2 * _QUERIES or mask.shape[-2] == 1:
        return [(slice(0, queries), keys)]
    seen = (mask != float("-inf")).expand(*mask.shape[:-1], keys).reshape(-1, queries, keys).any(dim=0)
    length = max(_QUERIES, -(-queries // _STRETCHES))
    reaches: list[tuple[slice, int]] = []
    for first in range(0, queries, length):
        some = slice(first, min(first + length, queries))
        columns = seen[some].any(dim=0).nonzero()
        reach = int(columns[-1]) + 1 if len(columns) else 1
        if reaches and reaches[-1][1] == reach:
            some = slice(reaches.pop()[0].start, some.stop)
        reaches.append((some, reach))
    return reaches


def _attended(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
) -> tuple[Tensor, AttentionRows]:
    """Attend with a mask that is added to the scores."""
    batch, heads, queries, size = query.shape
    keys, dtype = key.shape[-2], query.dtype
    query = query * (size**-0.5 if scale is None else scale)
    several = torch.full((queries, 1), keys > 1, device=query.device)
    if mask is not None:
        several = (mask > torch.finfo(dtype).min / 2).expand(*mask.shape[:-1], keys).sum(-1, keepdim=True) > 1
        mask = mask.expand(batch, heads, queries, keys)
    # Heads that share keys and values are attended as one with more queries: nothing is copied for them.
    shared = heads // math.lcm(key.shape[1], value.shape[1])
    groups = heads // shared
    queried = query.reshape(batch * groups, shared * queries, size)
    # [batch * groups, length, size]
    keyed, valued = (
        (one if one.shape[1] == groups else one.repeat_interleave(groups // one.shape[1], dim=1)).flatten(
            0, 1
        )
        for one in (key, value)
    )
    rows = shared * queries
    output = queried.new_empty(batch * groups, rows, value.shape[-1])
    highest, total, product = (queried.new_empty(batch * groups, rows, 1) for _ in range(3))
    # Below the smallest normal number an exponential takes many times as long, and adds nothing to its row.
    floor = math.log(torch.finfo(dtype).tiny) + 0.5
    stretches = list(_stretches(batch, groups, rows * keys, query.device))
    most = max((_length(sequences) * _length(some) for sequences, some in stretches), default=0)
    buffers = [queried.new_empty(most, rows, keys) for _ in range(2)]
    for sequences, some in stretches:
        shape = _length(sequences), _length(some)
        first = sequences.start * groups + some.start
        place = slice(first, first + shape[0] * shape[1])
        below, weights = (buffer[: shape[0] * shape[1]] for buffer in buffers)
        top, norm, along = highest[place], total[place], product[place]
        torch.bmm(queried[place], keyed[place].mT, out=below)
        if mask is not None:
            of_heads = slice(some.start * shared, some.stop * shared)
            below.view(shape[0], -1, queries, keys).add_(mask[sequences, of_heads])
        torch.amax(below, dim=-1, keepdim=True, out=top)
        below.sub_(top).clamp_(min=floor)
        torch.exp(below, out=weights)
        torch.sum(weights, dim=-1, keepdim=True, out=norm)
        torch.bmm(weights, valued[place], out=output[place])
        torch.sum(below.mul_(weights), dim=-1, keepdim=True, out=along)
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


def _stretches(batch: int, groups: int, scores: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Cut the batch into what is attended at once; where one sequence is too much, its groups of heads."""
    together = max(1, (_SCORES_CPU if device.type == "cpu" else _SCORES) // max(1, scores))
    for first in range(0, batch, rows := max(1, together // groups)):
        for group in range(0, groups, some := min(together, groups)):
            yield slice(first, min(first + rows, batch)), slice(group, min(group + some, groups))
