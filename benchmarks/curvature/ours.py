"""The one place that knows this package's engine: swap it here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.curvature.problem import WHOLE, Answer, Found, Problem
from hnf_offline.linalg.hessian import HessianGraph
from hnf_offline.linalg.lanczos import Extremes, lanczos_extremes
from hnf_offline.linalg.stopping import ACCURACIES

__all__ = ["ACCURACIES", "Ours", "ours"]


@dataclass(frozen=True, slots=True)
class Ours:
    """What this package found, and what it remembers for the next checkpoint.

    Attributes:
        answer: by target.
        vectors: unit Ritz vectors by target.
    """

    answer: Answer
    vectors: dict[str, Tensor]


def ours(problem: Problem, accuracy: str, previous: Ours | None = None) -> Ours:
    """Measure all targets.

    Args:
        problem: checkpoint, rows and targets.
        accuracy: one of `ACCURACIES`.
        previous: what was found at the previous checkpoint; None starts cold.

    Returns:
        Both ends of every target's spectrum.
    """
    rule = ACCURACIES[accuracy]
    graph = HessianGraph([problem.loss], [1.0], dict(problem.module.named_parameters()))
    answer: dict[str, Found] = {}
    vectors: dict[str, Tensor] = {}
    layers = problem.layers
    whole = graph.block([part for layer in layers.values() for part in layer.parts])
    generator = torch.Generator().manual_seed(0)

    def start(target: str, size: int, restriction: Tensor | None) -> Tensor:
        mixed = normalize(torch.randn(size, generator=generator), dim=0)
        known = [None if previous is None else previous.vectors[target], restriction]
        given = [vector for vector in known if vector is not None]
        return 0.05 * mixed + sum((normalize(vector, dim=0) for vector in given), torch.zeros(()))

    top = lanczos_extremes(whole, start(WHOLE, whole.dimension, None), rule=rule)
    answer[WHOLE], vectors[WHOLE] = _found(top), top.vector
    pieces = dict(
        zip([part for layer in layers.values() for part in layer.parts], whole.split(top.vector), strict=True)
    )
    for path, layer in layers.items():
        block = graph.block(layer.parts)
        restriction = torch.cat([pieces[part] for part in layer.parts])
        if previous is not None and float(restriction @ previous.vectors[path]) < 0:
            restriction = -restriction
        extremes = lanczos_extremes(block, start(path, block.dimension, restriction), rule=rule)
        answer[path], vectors[path] = _found(extremes), extremes.vector
    return Ours(answer, vectors)


def _found(extremes: Extremes) -> Found:
    ends = (extremes.largest.value, extremes.smallest.value)
    return Found(max(ends, key=abs), extremes.products, ends[0], extremes.largest.certified)
