"""Dynamic modes of every block: streams of the replayed tokens before and after it, and the linear map between them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hnf_offline.linalg.dynamic_modes import fitted, whitened
from hnf_offline.profile.batch import MicroBatch, rows_of
from hnf_offline.profile.effort import spend
from hnf_offline.profile.maps.capture import first_tensor, hidden_state
from hnf_offline.profile.subject import Subject
from hnf_offline.quantities.koopman import Transition
from hnf_offline.quantities.registry import Quantity, computable
from hnf_offline.run.model.layers import blocks_of, depth_within
from hnf_offline.run.model.loss import evaluate
from hnf_offline.table import Row

#: Most tokens, most modes of a stream too wide for all (arXiv 2602.22988), and fewest tokens a mode.
TOKENS, MODES, TOKENS_A_MODE = 2048, 32, 10
#: Fewest modes that say anything.
FEWEST_MODES = 2
#: Draws of the sequences for an error bar, groups of sequences at most, and fewest of them.
DRAWS, GROUPS, FEWEST_GROUPS = 50, 64, 4
#: Share of the draws that an error bar holds.
COVERAGE = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Streams:
    """What goes into a block and what comes out of it.

    Attributes:
        before: [tokens, width].
        after: [tokens, width].
        sequences: [tokens], number of the sequence that each is of.
    """

    before: Tensor
    after: Tensor
    sequences: Tensor


def mode_rows(subject: Subject, seed: int) -> list[Row]:
    """Measure the dynamic modes of every block.

    Blocks whose output is not shaped as their input, and streams that are not finite or do not spread, have none.
    The error bars of the masses and of the spectral radius are those of other draws of the replayed sequences; all
    blocks see the same draws, so that the bar of their mean is one too.

    Returns:
        Rows of every block, and of the whole model.
    """
    rows: list[Row] = []
    blocks: dict[Quantity, list[tuple[float, Tensor | None]]] = defaultdict(list)
    for path, streams in _streams(subject.module, subject.batches).items():
        tokens, width = streams.before.shape
        rank = width if tokens >= TOKENS_A_MODE * width else min(MODES, tokens // TOKENS_A_MODE)
        if rank < FEWEST_MODES or not bool(streams.before.isfinite().all() & streams.after.isfinite().all()):
            continue
        before, after = (one.cpu() for one in whitened(streams.before, streams.after, min(rank, width), seed))
        if before.shape[1] < FEWEST_MODES:
            continue
        operator = fitted(before, after)
        values, vectors = torch.linalg.eig(operator)
        transition = Transition(operator, values, vectors, before, after)
        drawn = _drawn_moduli(before, after, streams.sequences, seed)
        depth = depth_within(subject.layers, path)
        for entry in computable(frozenset({"moduli"}), "full"):
            others = None if drawn is None or entry.name == "koopman.modes" else entry.function(drawn)
            blocks[entry].append((float(entry.function(values.abs())), others))
            rows.append(_row(subject, path, "block", depth, entry, *blocks[entry][-1]))
        for entry in computable(frozenset({"transition"}), "full"):
            blocks[entry].append((float(entry.function(transition)), None))
            rows.append(_row(subject, path, "block", depth, entry, *blocks[entry][-1]))
    for entry, found in blocks.items():
        rows.append(_row(subject, "", "model", -1, entry, *_over_blocks(entry, found)))
    spend("forward", rows_of(subject.batches))
    # Beyond a spectral radius of 1 the Kreiss constant is infinite by definition, which is no news.
    return [row for row in rows if row.quantity != "koopman.kreiss" or math.isfinite(row.value)]


def _over_blocks(entry: Quantity, found: list[tuple[float, Tensor | None]]) -> tuple[float, Tensor | None]:
    values = torch.tensor([value for value, _ in found], dtype=torch.float64)
    drawn = [others for _, others in found if others is not None]
    stacked = torch.stack(drawn) if len(drawn) == len(found) else None
    if entry.over_batches == "max":
        return float(values.max()), None if stacked is None else stacked.amax(dim=0)
    return float(values.mean()), None if stacked is None else stacked.mean(dim=0)


def _row(
    subject: Subject, path: str, kind: str, depth: int, entry: Quantity, value: float, drawn: Tensor | None
) -> Row:
    if drawn is None:
        return Row(subject.step, path, kind, depth, entry.name, value, batch=subject.name)
    low, high = drawn.quantile(torch.tensor(COVERAGE, dtype=drawn.dtype)).tolist()
    # What is drawn again has fewer different tokens, which widens a spectrum: the bar holds the value all the same.
    return Row(
        subject.step,
        path,
        kind,
        depth,
        entry.name,
        value,
        min(low, value),
        max(high, value),
        batch=subject.name,
    )


def _drawn_moduli(before: Tensor, after: Tensor, sequences: Tensor, seed: int) -> Tensor | None:
    """|lambda_j| of fits to sequences drawn anew, [draws, modes]; None where there are too few sequences."""
    groups = int(sequences.max()) + 1
    if groups > GROUPS:
        sequences, groups = sequences * GROUPS // groups, GROUPS
    if groups < FEWEST_GROUPS:
        return None
    members = torch.nn.functional.one_hot(sequences, groups).to(before.dtype)
    counts = torch.randint(groups, (DRAWS, groups), generator=torch.Generator().manual_seed(seed))
    weights = torch.stack([torch.bincount(one, minlength=groups) for one in counts]).to(before.dtype)

    def drawn(samples: Tensor) -> Tensor:
        """Sums over each draw of what tokens have, from sums over each group."""
        return torch.einsum("dg,g...->d...", weights, samples)

    tokens = drawn(members.sum(dim=0))[:, None]
    mean_before, mean_after = drawn(members.mT @ before) / tokens, drawn(members.mT @ after) / tokens

    def products(left: Tensor, right: Tensor) -> Tensor:
        return torch.stack([left[sequences == g].mT @ right[sequences == g] for g in range(groups)])

    def centred(left: Tensor, right: Tensor, means: tuple[Tensor, Tensor]) -> Tensor:
        outer = means[0][:, :, None] * means[1][:, None, :]
        return drawn(products(left, right)) - tokens[:, :, None] * outer

    own = centred(before, before, (mean_before, mean_before))
    moved = centred(before, after, (mean_before, mean_after))
    fits, failed = torch.linalg.solve_ex(own, moved)
    fits = fits[(failed == 0) & fits.isfinite().all(dim=(1, 2))]
    return torch.linalg.eigvals(fits).abs() if len(fits) else None


def _streams(module: nn.Module, batches: tuple[MicroBatch, ...]) -> Mapping[str, Streams]:
    """Replay all rows and keep at most `TOKENS` tokens of each block's input and output, evenly over sequences."""
    given = [batch.tokens for batch in batches]
    # Into how many places a model cuts an image shows at its first block.
    stride = 0 if given[0].is_floating_point() else _stride(sum(map(Tensor.numel, given)), given[0].shape[-1])
    everything = rows_of(batches)
    pieces: dict[str, list[tuple[Tensor, ...]]] = defaultdict(list)
    first = rows = 0

    def keep(path: str, before: Tensor, after: Tensor) -> None:
        nonlocal stride
        tokens = before.flatten(0, -2).shape[0]
        stride = stride or _stride(everything * tokens // rows, tokens // rows)
        place = torch.arange(0, tokens, stride)
        # Copied, as later blocks may write into it, and off the device, whose memory is not planned for all blocks.
        chosen = (one.flatten(0, -2)[::stride].to("cpu", copy=True) for one in (before, after))
        # A model may hand its blocks all rows one after the other.
        pieces[path].append((*chosen, first + place * rows // tokens))

    with _watched(module, keep), torch.no_grad():
        for batch in batches:
            rows = len(batch.tokens)
            evaluate(module, batch.tokens, batch.labels)
            first += rows
    return {
        path: Streams(*(torch.cat(parts) for parts in zip(*found, strict=True)))
        for path, found in pieces.items()
    }


def _stride(total: int, length: int) -> int:
    """Choose every n-th of all tokens so that at most `TOKENS` are left.

    Returns:
        n, which has no factor in common with the length of a sequence.
    """
    stride = -(-total // TOKENS)
    while math.gcd(stride, length) > 1:  # or the same places of every sequence would be taken
        stride += 1
    return stride


@contextmanager
def _watched(module: nn.Module, keep: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Hand over the hidden state before and after every block, copied, while the context is open."""
    given: dict[str, Tensor] = {}

    def before(path: str) -> Callable[..., None]:
        def hook(_part: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            hidden = hidden_state(arguments, keywords)
            if hidden is not None:
                given[path] = hidden.detach().clone()  # the block may write into it

        return hook

    def after(path: str) -> Callable[..., None]:
        def hook(_part: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
            came_in, came_out = given.pop(path, None), first_tensor(output)
            if came_in is not None and came_out is not None and came_in.shape == came_out.shape:
                keep(path, came_in, came_out.detach())

        return hook

    handles = []
    for path in blocks_of(module):
        part = module.get_submodule(path)
        handles.append(part.register_forward_pre_hook(before(path), with_kwargs=True))
        handles.append(part.register_forward_hook(after(path)))
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it would pass the blocks by
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()
