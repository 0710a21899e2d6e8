"""Scaled dot-product attention that is read while it is computed, a stretch at a time.

Torch's own kernels either show no scores or keep all of them. Here a few sequences or heads are scored, read, and used,
in a buffer that stays in the processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from hnf_offline.quantities.attention import AttentionRows

#: Scores that are held at once: a megabyte of them on a CPU; elsewhere enough to keep a device busy.
_SCORES_CPU, _SCORES = 1 << 18, 1 << 26
#: Queries of a stretch with keys of its own: at least, in that many or fewer stretches; and stretches at most.
_QUERIES, _FEW, _MORE, _STRETCHES = 32, 4, 64, 8


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
    queries, keys = query.shape[-2], key.shape[-2]
    if is_causal:
        on_cpu = query.device.type == "cpu"
        length = _length_of_stretches(queries) if on_cpu else queries
        # On a CPU it is small, and the same for every layer.
        causal = _causal if on_cpu else _causal.__wrapped__
        return _attended(query, key, value, causal(queries, keys, length, query.dtype, query.device), scale)
    if attn_mask is None:
        return _attended(query, key, value, _unmasked(queries, keys, query.device), scale)
    return _attended(query, key, value, _masked(attn_mask, queries, keys, query.dtype), scale)


def _covered(query: Tensor, key: Tensor, value: Tensor, grouped: bool) -> bool:
    same = all(one.ndim == 4 and one.dtype == query.dtype for one in (query, key, value))
    if not same or query.dtype not in {torch.float32, torch.float64}:
        return False
    heads = query.shape[1], key.shape[1], value.shape[1]
    fits = heads[0] % heads[1] == 0 == heads[0] % heads[2] if grouped else len(set(heads)) == 1
    return fits and query.shape[0] == key.shape[0] == value.shape[0]


@dataclass(frozen=True, slots=True)
class _Reach:
    """Queries that are scored together.

    Attributes:
        queries: which ones.
        keys: how many of the first keys are enough for them.
        open_keys: how many of these need nothing added to their scores.
        added: to the scores of the others, broadcasts to [batch, heads, queries, keys]; None where there are none.
    """

    queries: slice
    keys: int
    open_keys: int
    added: Tensor | None


@dataclass(frozen=True, slots=True)
class _Mask:
    """What queries see.

    Attributes:
        reaches: all queries, in stretches.
        several: whether at least two keys are seen, broadcasts to [batch, heads, queries].
    """

    reaches: tuple[_Reach, ...]
    several: Tensor


def _unmasked(queries: int, keys: int, device: torch.device) -> _Mask:
    several = torch.full((queries,), keys > 1, device=device)
    return _Mask((_Reach(slice(0, queries), keys, keys, None),), several)


@lru_cache(maxsize=2)
def _causal(queries: int, keys: int, length: int, dtype: torch.dtype, device: torch.device) -> _Mask:
    """Query i sees keys up to i; in stretches of some queries."""
    above = torch.full((length, min(length, keys)), float("-inf"), dtype=dtype, device=device).triu_(1)
    reaches = []
    for first in range(0, queries, length):
        some = slice(first, min(first + length, queries))
        reach, same = min(some.stop, keys), min(first, keys)
        added = above[: some.stop - first, : reach - same] if reach > same else None
        reaches.append(_Reach(some, reach, same, added))
    return _Mask(tuple(reaches), (torch.arange(queries, device=device) > 0) & (keys > 1))


def _masked(mask: Tensor, queries: int, keys: int, dtype: torch.dtype) -> _Mask:
    """A mask as torch takes it: True where a key is seen, or what is added to the scores."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, float("-inf"))
    mask = mask.expand(*mask.shape[:-2], queries, keys)
    several = (mask > torch.finfo(dtype).min / 2).sum(-1) > 1
    reaches = tuple(
        _Reach(some, reach, 0, mask[..., some, :reach]) for some, reach in _reaches(queries, keys, mask)
    )
    return _Mask(reaches, several)


def _length_of_stretches(queries: int) -> int:
    return max(_QUERIES, -(-queries // _STRETCHES), min(_MORE, -(-queries // _FEW)))


def _reaches(queries: int, keys: int, mask: Tensor) -> list[tuple[slice, int]]:
    """Cut the queries where an earlier one sees no late keys, which are then left out: of causal attention nearly half.

    Returns:
        Stretches of queries, and how many keys are enough for each; all of them on a device, which would have to be
        waited for.
    """
    length = _length_of_stretches(queries)
    if mask.device.type != "cpu" or queries < 2 * length or mask.stride(-2) == 0:
        return [(slice(0, queries), keys)]
    seen = (mask != float("-inf")).reshape(-1, queries, keys).any(dim=0)
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
    query: Tensor, key: Tensor, value: Tensor, mask: _Mask, scale: float | None = None
) -> tuple[Tensor, AttentionRows]:
    """Attend, and read every row of attention.

    Args:
        query: [batch, heads, queries, size], float32 or float64.
        key: [batch, heads or a divisor of them, keys, size].
        value: [batch, heads or a divisor of them, keys, width].
        mask: what is seen.
        scale: of the scores; None for 1 / sqrt(size).

    Returns:
        [batch, heads, queries, width], zero for queries that see no key; and the rows.
    """
    batch, heads, queries, size = query.shape
    # Heads that share keys and values are attended as one with more queries: nothing is copied for them.
    shared = heads // math.lcm(key.shape[1], value.shape[1])
    groups = heads // shared
    # [batch * groups, keys, size]
    keyed, valued = (
        (one if one.shape[1] == groups else one.repeat_interleave(groups // one.shape[1], dim=1)).flatten(
            0, 1
        )
        for one in (key, value)
    )
    # As modules go on with it, and as torch's kernels lay it out: token by token.
    output = query.new_empty(batch, queries, heads, value.shape[-1]).transpose(1, 2)
    # Highest score of a row; with b what a score is below it, sum of exp(b) and of b exp(b).
    sums = query.new_empty(3, batch, heads, queries, 1)
    scale = size**-0.5 if scale is None else scale
    # Below the smallest normal number an exponential takes many times as long, and adds nothing to its row.
    floor = math.log(torch.finfo(query.dtype).tiny) + 0.5
    scores = shared * max((_length(one.queries) * one.keys for one in mask.reaches), default=0)
    buffers = query.new_empty(2, _most(batch, groups, scores, query.device) * scores)
    stretches = list(_stretches(batch, groups, scores, query.device))
    for reach in mask.reaches:
        keys_seen, values_seen = keyed[:, : reach.keys].mT, valued[:, : reach.keys]
        # The last stretch may hold fewer than the others.
        laid: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        for sequences, part in stretches:
            number = _length(sequences), _length(part)
            if number not in laid:
                by_head = number[0], number[1] * shared, _length(reach.queries), reach.keys
                both = [buffer[: math.prod(by_head)].view(by_head) for buffer in buffers]
                laid[number] = *both, *(one.view(math.prod(number), -1, reach.keys) for one in both)
            # Twice the same memory: by head, and by group of heads.
            scored, weighed, below, weights = laid[number]
            first = sequences.start * groups + part.start
            place = slice(first, first + len(below))
            here = sequences, slice(part.start * shared, part.stop * shared), reach.queries
            top, norm, along = sums[:, *here].unbind()
            queried = query[here].reshape(*below.shape[:2], size)
            torch.baddbmm(below, queried, keys_seen[place], beta=0, alpha=scale, out=below)
            if reach.added is not None:
                scored[..., reach.open_keys :].add_(_of(reach.added, sequences, here[1]))
            torch.amax(scored, dim=-1, keepdim=True, out=top)
            scored.sub_(top).clamp_(min=floor)
            torch.exp(below, out=weights)
            torch.sum(weighed, dim=-1, keepdim=True, out=norm)
            taken = torch.bmm(weights, values_seen[place])
            torch.div(taken.view(*scored.shape[:3], -1), norm, out=output[here])
            torch.sum(scored.mul_(weighed), dim=-1, keepdim=True, out=along)
    highest, total, product = sums
    several = mask.several.expand(batch, heads, queries)
    # log A_ij = (z_ij - m) - log sum_j exp(z_ij - m), m the highest of the row.
    entropy = total.log() - product.div_(total)
    rows = AttentionRows(highest.squeeze(-1), total.reciprocal().squeeze(-1), entropy.squeeze(-1), several)
    if _all_see(highest):
        return output, rows
    # As torch has it: a query whose keys are all masked by minus infinity gets nothing.
    return output.masked_fill_(highest.isneginf(), 0.0), _opened(rows)


def _all_see(highest: Tensor) -> bool:
    """Whether every query sees a key, and no score is infinite; False where to look at it would mean to wait."""
    if highest.device.type != "cpu":
        return False
    return bool(np.abs(highest.numpy()).max(initial=0.0) < -torch.finfo(highest.dtype).min / 2)


def _of(mask: Tensor, sequences: slice, heads: slice) -> Tensor:
    """The mask of some sequences and heads; what holds for all of them as it is."""
    if mask.ndim > 2 and mask.shape[-3] > 1:
        mask = mask[..., heads, :, :]
    return mask[sequences] if mask.ndim > 3 and mask.shape[0] > 1 else mask


def _opened(rows: AttentionRows) -> AttentionRows:
    """The rows, where some queries see no key: libraries mask by minus infinity or by the most negative number."""
    blind = rows.highest <= torch.finfo(rows.highest.dtype).min / 2
    return AttentionRows(
        rows.highest.masked_fill(blind, float("-inf")),
        rows.largest,
        rows.entropy.masked_fill(blind, float("nan")),
        rows.several & ~blind & rows.highest.isfinite(),
    )


def _length(stretch: slice) -> int:
    return int(stretch.stop - stretch.start)


def _most(batch: int, groups: int, scores: int, device: torch.device) -> int:
    """Sequences times groups of heads that are attended at once."""
    together = max(1, (_SCORES_CPU if device.type == "cpu" else _SCORES) // max(1, scores))
    return min(batch, together // groups) * groups if together >= groups else min(together, groups)


def _stretches(batch: int, groups: int, scores: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Cut the batch into what is attended at once; where one sequence is too much, its groups of heads."""
    most = _most(batch, groups, scores, device)
    for first in range(0, batch, rows := max(1, most // groups)):
        for group in range(0, groups, some := min(most, groups)):
            yield slice(first, min(first + rows, batch)), slice(group, min(group + some, groups))
