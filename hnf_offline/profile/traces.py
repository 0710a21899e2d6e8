"""Traces of the layers' diagonal blocks at one checkpoint, and their sum: the trace of the whole Hessian.

A layer's trace takes several times as many products as its eigenvalues, so it is measured on request only. The whole
model's costs nothing more: the layers share no parameter and leave none out, and one layer's test vectors see no
noise from the others, as those of the whole model would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Protocol

import torch
from torch import Tensor

from hnf_offline.linalg.hessian import HessianGraph, block_products
from hnf_offline.linalg.trace import TraceEstimate, XTrace
from hnf_offline.profile.batch import rows_of
from hnf_offline.profile.effort import spend
from hnf_offline.profile.layer_curvature import exact_graph, share_behind
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.profile.subject import Subject
from hnf_offline.profile.suffix.blocks import CallOrder
from hnf_offline.quantities.registry import computable
from hnf_offline.run.model.layers import Layer
from hnf_offline.table import Row


class LayerOperators(Protocol):
    """The diagonal blocks of some layers, multiplied together where that saves passes."""

    def groups(self, layers: Sequence[Layer]) -> list[tuple[float, list[Layer]]]:
        """Put together the layers that are multiplied together.

        Returns:
            (cost of one product, layers); each layer is in one group.
        """
        ...

    def __call__(self, layers: Sequence[Layer], vectors: Sequence[Tensor]) -> list[Tensor]:
        """Multiply the blocks of some layers of one group, each by its unit vector.

        Returns:
            One [size of its layer] product a layer.
        """
        ...


class ExactBlocks:
    """Blocks of a graph of second derivatives, one after another."""

    def __init__(self, graph: HessianGraph, rows: int = 0, order: CallOrder | None = None) -> None:
        self._graph, self._rows, self._order = graph, rows, order

    def groups(self, layers: Sequence[Layer]) -> list[tuple[float, list[Layer]]]:
        """Put every layer into a group of its own.

        Returns:
            (1.0, [layer]) for each.
        """
        return [(1.0, [layer]) for layer in layers]

    def __call__(self, layers: Sequence[Layer], vectors: Sequence[Tensor]) -> list[Tensor]:
        """Multiply the blocks of some layers, each by its vector.

        Returns:
            One [size of its layer] product a layer.
        """
        for layer in layers:
            share = 0.5 if self._order is None else share_behind(self._order, layer)
            spend("layer product", self._rows, share=share)
        return block_products(self._graph, [layer.parts for layer in layers], vectors)


def layer_trace_rows(subject: Subject, settings: ProfileSettings) -> list[Row]:
    """Estimate traces by exact products, on the rows that the layers' eigenvalues are of.

    Differences of gradients would be cheaper, but their error does not average out over test vectors: up to 2 % of a
    trace on the sample run that spikes, and 20 standard errors of the surest one.

    Returns:
        Rows as of `trace_rows`; none where the loss is not finite.
    """
    several = len(subject.training_batches) > 1
    batches = subject.training_batches[0] if several else subject.batches
    graph = exact_graph(subject.module, batches, keep=subject.keep_graphs)
    if not bool(torch.isfinite(graph.loss)):
        return []
    name = subject.training_batch_name if several else subject.name
    known = subject.products.calibration
    blocks = ExactBlocks(graph, rows_of(batches), None if known is None else known.order)
    return trace_rows(subject, settings, blocks, graph.loss, name)


def trace_rows(
    subject: Subject, settings: ProfileSettings, operators: LayerOperators, like: Tensor, batch: str
) -> list[Row]:
    """Estimate the trace of every layer's block with `settings.traces` products each.

    Args:
        subject: the layers.
        settings: the budget, the seed, and which layers.
        operators: the layers' blocks.
        like: a tensor of their device and dtype.
        batch: name of the rows they are of.

    Returns:
        A row a layer, and one for the whole model where no layer was left out; none where no trace is asked for.
    """
    if settings.traces <= 0:
        return []
    numbered = {layer.path: number for number, layer in enumerate(subject.layers, start=1)}
    chosen = [
        layer
        for layer in subject.layers
        if settings.layers is None or fnmatchcase(layer.path, settings.layers)
    ]
    found: dict[str, TraceEstimate] = {}
    for _, group in operators.groups(chosen):
        estimates = [
            # Layers of one size must not share their test vectors: their errors are added up as independent.
            XTrace(
                layer.size,
                products=settings.traces,
                seed=settings.seed + 1_000_003 * numbered[layer.path],
                like=like,
            )
            for layer in group
        ]
        while active := [place for place, one in enumerate(estimates) if not one.finished]:
            images = operators(
                [group[place] for place in active], [estimates[place].vector for place in active]
            )
            for place, image in zip(active, images, strict=True):
                estimates[place].advance(image)
        found |= {layer.path: one.result() for layer, one in zip(group, estimates, strict=True)}
    rows: list[Row] = []
    for layer in chosen:
        rows += _rows(subject.step, layer.path, layer.kind, layer.depth, found[layer.path], batch)
    if chosen and len(chosen) == len(subject.layers):
        rows += _rows(subject.step, "", "model", -1, sum_of(list(found.values())), batch)
    return rows


def sum_of(estimates: Sequence[TraceEstimate]) -> TraceEstimate:
    """Add up traces of blocks that were estimated independently.

    Returns:
        The trace of all of them together.
    """
    return TraceEstimate(
        math.fsum(one.value for one in estimates),
        math.hypot(*(one.error for one in estimates)),
        sum(one.products for one in estimates),
        sum(one.dimension for one in estimates),
    )


def _rows(step: int, path: str, kind: str, depth: int, estimate: TraceEstimate, batch: str) -> list[Row]:
    rows: list[Row] = []
    for entry in computable(frozenset({"trace_estimate"}), "curvature"):
        value = float(entry.function(estimate))
        if estimate.error == 0.0:
            rows.append(Row(step, path, kind, depth, entry.name, value, batch=batch))
            continue
        low, high = value - 2 * estimate.error, value + 2 * estimate.error
        # Where not even the sign is sure, the figure shows no more than the size of its error.
        sure = low > 0.0 or high < 0.0
        rows.append(Row(step, path, kind, depth, entry.name, value, low, high, sure, batch))
    return rows
