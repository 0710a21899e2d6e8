"""The forward tier: what one forward pass of the replayed rows shows, with its spread over two halves of them."""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hnf_offline.profile.effort import spend
from hnf_offline.profile.observe import observing
from hnf_offline.profile.subject import Subject
from hnf_offline.quantities.attention import attention_rows
from hnf_offline.quantities.logits import predictions
from hnf_offline.quantities.observed import Observed
from hnf_offline.quantities.registry import Quantity, computable
from hnf_offline.quantities.similarity import Compared
from hnf_offline.run.model.layers import Layer, depth_within
from hnf_offline.run.model.loss import evaluate
from hnf_offline.table import Row

#: Sequences that two successive blocks' outputs are compared on.
COMPARED_SEQUENCES = 4
#: What several quantities read the same of.
_READ_ONCE = frozenset({"activation", "gate_output", "residual_stream", "residual_before"})
#: Numbers that the comparison of several blocks may hold at once, a few times over.
COMPARED_TOGETHER = 1 << 20


def forward_rows(subject: Subject) -> list[Row]:
    """Measure everything a forward pass shows; the spread over two halves of the rows is the error bar.

    Returns:
        Rows of the forward tier.
    """
    seen = _Seen()
    for number, half in enumerate(subject.halves):
        seen.half = number
        with observing(subject.module, seen.report):
            outcome = evaluate(subject.module, half.tokens, half.labels)
        spend("forward", len(half.tokens))
        whole: dict[str, Tensor] = {"loss": outcome.loss.detach()}
        if outcome.logits is not None and outcome.targets is not None:
            whole |= predictions(outcome.logits.detach(), outcome.targets)
        seen.report("", "model", whole)
    seen.over_all_rows()
    sites = [(site, *found) for site, entries in seen.values.items() for found in entries.values()]
    # A module called twice in one pass (ALBERT's shared block) shows each call; the worst one counts.
    measured = fetched([
        torch.stack([_of_calls(calls, entry) for calls in values]) for _, entry, values in sites
    ])
    entries = [entry for _, entry, _ in sites]
    depths = {(path, kind): _depth(subject.layers, path, kind) for path, kind in seen.values}
    rows: list[Row] = []
    for at, spread in _over_halves(subject, entries, measured):
        path, kind = sites[at][0]
        rows += _rows((subject.step, path, kind, depths[path, kind]), entries[at], spread, subject.name)
    return rows


class _Seen:
    """What quantities come to at every place.

    Attributes:
        values: site -> quantity -> one tensor a call of each half; kept on the device until the end, so that nothing
            waits. (By name: all texts of a quantity would be hashed.)
        half: which half of the rows is on its way through the model.
    """

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], dict[str, tuple[Quantity, list[list[Tensor]]]]] = defaultdict(dict)
        self.half = 0
        self._together = _OverAllRows()
        self._last_block: Observed | None = None

    def report(self, path: str, kind: str, seen_here: Mapping[str, Any]) -> None:
        """Evaluate what can be of something that was seen."""
        observations = read_once(seen_here, self._last_block)
        self._last_block = observations.get("residual_stream", self._last_block)
        for entry in computable(frozenset(observations), "forward"):
            _, values = self.values[path, kind].setdefault(entry.name, (entry, []))
            while len(values) <= self.half:
                values.append([])
            values[self.half].append(entry.function(*(observations[name] for name in entry.inputs)))
        self._together.see((path, kind), observations)

    def over_all_rows(self) -> None:
        """Evaluate what needs to have seen all rows."""
        for sites, observations in self._together.observations():
            for entry in computable(frozenset(observations), "forward"):
                each = entry.function(*(observations[name] for name in entry.inputs))
                for site, value in zip(sites, each.reshape(len(sites)), strict=True):
                    self.values[site][entry.name] = entry, [[value]]


@dataclass(frozen=True, slots=True)
class _Spread:
    """A value over all rows, and the range of those of the halves: a number, or one a head.

    Attributes:
        value: over all rows.
        low: the lowest one of a half.
        high: the highest one of a half.
        halves: how many there are.
    """

    value: list[float]
    low: list[float]
    high: list[float]
    halves: int


def _over_halves(
    subject: Subject, entries: Sequence[Quantity], measured: Sequence[Tensor]
) -> Iterator[tuple[int, _Spread]]:
    """Combine what the halves show, all values that combine alike at once; yields places and what is there."""
    weights = torch.tensor([half.weight for half in subject.halves], dtype=torch.float64)
    alike: dict[tuple[str, torch.Size], list[int]] = defaultdict(list)
    for at, (entry, halves) in enumerate(zip(entries, measured, strict=True)):
        alike[entry.over_batches, halves.shape].append(at)
    for (how, shape), places in alike.items():
        # [halves, places, heads or nothing]
        together = torch.stack([measured[at] for at in places], dim=1).reshape(shape[0], len(places), -1)
        found = _combine(together, how, weights[: shape[0]]), together.amin(dim=0), together.amax(dim=0)
        for at, value, low, high in zip(places, *(one.tolist() for one in found), strict=True):
            yield at, _Spread(value, low, high, shape[0])


def _depth(layers: tuple[Layer, ...], path: str, kind: str) -> int:
    owner = path.removesuffix(".softmax")
    depth = -1 if path == "" else depth_around(layers, owner)
    return depth_of_value(layers, owner, depth) if kind == "softmax" else depth


def _of_calls(calls: Sequence[Tensor], entry: Quantity) -> Tensor:
    return calls[0] if len(calls) == 1 else _combine(torch.stack(list(calls)), entry.over_batches, None)


def read_once(seen: Mapping[str, Any], before: Observed | None = None) -> dict[str, Any]:
    """Read what is large once, for all quantities that need it.

    Args:
        seen: what was reported at one place.
        before: what was read of the block before.

    Returns:
        What quantities are evaluated on: `attention_rows` for scores and attention, and `Observed` for activations and
        the residual stream.
    """
    observations: dict[str, Any] = dict(seen)
    if "attention_scores" in observations:
        scores, attention = observations.pop("attention_scores"), observations.pop("attention")
        observations["attention_rows"] = attention_rows(scores, attention)
    known = [] if before is None else [before]
    for name in _READ_ONCE & observations.keys():
        values = observations[name]
        found = next((one for one in known if one.values is values), None)
        if found is None:
            known.append(found := Observed(values))
        observations[name] = found
    return observations


class _OverAllRows:
    """What has to be seen of several micro-batches before it can be evaluated, however the rows are cut."""

    def __init__(self) -> None:
        self._highest: dict[tuple[str, str], Tensor] = {}
        # site -> the first sequences that its block gives out, and what went into it, of each call
        self._compared: dict[tuple[str, str], tuple[list[Tensor], list[Tensor]]] = {}
        self._last: tuple[Observed, Tensor] | None = None

    def see(self, site: tuple[str, str], observations: Mapping[str, Any]) -> None:
        """Keep of an observation what is needed: the highest value of every unit, the first few sequences."""
        if "preactivation" in observations:
            units = observations["preactivation"].flatten(0, -2).amax(dim=0)
            known = self._highest.get(site)
            # A function that serves layers of several widths has no units of its own: the last width counts.
            fits = known is not None and known.shape == units.shape
            self._highest[site] = torch.maximum(known, units) if known is not None and fits else units
        if "stream_before" in observations:
            self._keep(site, observations)

    def _keep(self, site: tuple[str, str], observations: Mapping[str, Any]) -> None:
        after, before = self._compared.setdefault(site, ([], []))
        room = COMPARED_SEQUENCES - sum(len(stream) for stream in after)
        stream, stream_before = (observations[name][:room] for name in ("stream", "stream_before"))
        if room <= 0 or any(known.shape[1:] != stream.shape[1:] for known in after):
            return
        # What the block before gave out is kept already.
        known = None
        if self._last is not None and self._last[0] is observations["residual_before"]:
            known = self._last[1]
        before.append(known if known is not None and known.shape == stream.shape else stream_before.clone())
        after.append(stream.clone())
        self._last = observations["residual_stream"], after[-1]

    def observations(self) -> Iterator[tuple[list[tuple[str, str]], dict[str, Any]]]:
        """Give what was kept.

        Yields:
            Sites, and what can be evaluated there: of blocks that follow each other together, one after another.
        """
        for site, units in self._highest.items():
            yield [site], {"highest_preactivation": units}
        for chain in self._chains():
            first_after, _ = self._compared[chain[0]]
            # What is largest of them: distances between all tokens of a sequence.
            rows, tokens, width = sum(map(len, first_after)), *first_after[0].shape[1:]
            together = max(1, COMPARED_TOGETHER // max(1, rows * tokens * max(tokens, width)))
            for first in range(0, len(chain), together):
                sites = chain[first : first + together]
                streams = [self._compared[sites[0]][1], *(self._compared[site][0] for site in sites)]
                before, after = Compared(torch.stack([torch.cat(pieces) for pieces in streams])).successive()
                yield sites, {"sequences": after, "sequences_before": before}

    def _chains(self) -> list[list[tuple[str, str]]]:
        """Blocks in order, cut where one does not take what the one before it gave out."""
        chains: list[list[tuple[str, str]]] = []
        last: list[Tensor] = []
        for site, (after, before) in self._compared.items():
            follows = len(last) == len(before) and all(map(operator.is_, last, before))
            if follows and chains:
                chains[-1].append(site)
            else:
                chains.append([site])
            last = after
        return chains


def fetched(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Bring many small tensors from the device in one transfer: every transfer waits for all work before it.

    Args:
        tensors: of any shapes, on one device.

    Returns:
        The same shapes, on the CPU, float64.
    """
    if not tensors:
        return []
    flat = torch.cat([tensor.flatten() for tensor in tensors]).cpu().double()
    pieces = flat.split_with_sizes([tensor.numel() for tensor in tensors])
    return [piece.reshape(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


def depth_around(layers: tuple[Layer, ...], path: str) -> int:
    """Give the depth of a module: that of the last layer in it, or in the nearest module around it that has one.

    Returns:
        The depth; 0 where there is no layer at all.
    """
    while path and not any(layer.path == path or layer.path.startswith(f"{path}.") for layer in layers):
        path = path.rpartition(".")[0]
    return depth_within(layers, path) if path else max((layer.depth for layer in layers), default=0)


def depth_of_value(layers: Sequence[Layer], attention: str, otherwise: int) -> int:
    """Give the depth of a softmax over keys: that of the projections that feed it.

    Returns:
        The depth of the last query, key or value layer in an attention module; `otherwise` where it has none.
    """
    inside = [
        layer.depth
        for layer in layers
        if layer.kind in {"query", "key", "value"} and layer.path.startswith(f"{attention}.")
    ]
    return max(inside, default=otherwise)


def _combine(values: Tensor, how: str, weights: Tensor | None) -> Tensor:
    """Combine [n, ...] values over their first dimension."""
    if how == "max":
        return values.amax(dim=0)
    if how == "min":
        return values.amin(dim=0)
    share = torch.full((len(values),), 1 / len(values)).to(values) if weights is None else weights.to(values)
    share = (share / share.sum()).reshape(-1, *[1] * (values.ndim - 1))
    return (share * values.square()).sum(dim=0).sqrt() if how == "rms" else (share * values).sum(dim=0)


def _rows(place: tuple[int, str, str, int], entry: Quantity, spread: _Spread, batch: str) -> Iterator[Row]:
    """Rows of one quantity at one place."""
    head = 0
    if entry.worst_head is not None:
        head = int(np.argmax(spread.value) if entry.worst_head == "max" else np.argmin(spread.value))
    value = spread.value[head]
    if entry.name.startswith("similarity.") and not math.isfinite(value):
        return  # of a stream that is the same at every token there is no similarity
    low, high = (spread.low[head], spread.high[head]) if spread.halves > 1 else (None, None)
    yield Row(*place, entry.name, value, low, high, batch=batch)
    if entry.worst_head is not None:
        yield Row(*place, f"{entry.name}_head", float(head), batch=batch)
