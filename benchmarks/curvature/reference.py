"""Both ends of every target's spectrum in float64, so tightly that the tools' errors can be read against them."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch

from benchmarks.curvature.problem import WHOLE, Problem
from hnf_offline.linalg.hessian import HessianGraph
from hnf_offline.linalg.lanczos import lanczos_extremes

#: An eigenvalue lies within the residual; of its square over the gap is the usual error.
RESIDUAL = 1e-5
#: The second start only has to see whether the first one missed the end; both look for a while before they may stop.
SECOND_RESIDUAL, LEAST = 1e-2, 15
#: Largest and smallest eigenvalue by target.
Reference = dict[str, tuple[float, float]]


def reference(problem: Problem, file: Path | None = None) -> Reference:
    """Find both ends by Lanczos from two random starts; the outer of what both found counts.

    Args:
        problem: checkpoint, rows and targets.
        file: where the result is kept, and read from if it is there.

    Returns:
        By target.
    """
    if file is not None and file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        return {target: (ends[0], ends[1]) for target, ends in kept.items()}
    module = copy.deepcopy(problem.module).double()
    double = Problem(module, problem.tokens, problem.targets)
    graph = HessianGraph([double.loss], [1.0], dict(module.named_parameters()))
    found: Reference = {}
    for target in problem.targets:
        layers = double.layers.values() if target == WHOLE else [double.layers[target]]
        block = graph.block([part for layer in layers for part in layer.parts])
        ends: list[tuple[float, float]] = []
        for seed, residual in enumerate((RESIDUAL, SECOND_RESIDUAL)):
            generator = torch.Generator().manual_seed(seed)
            start = torch.randn(block.dimension, generator=generator, dtype=torch.float64)
            extremes = lanczos_extremes(block, start, residual=residual, minimum=LEAST, maximum=400)
            ends.append((extremes.largest.value, extremes.smallest.value))
        found[target] = (max(high for high, _ in ends), min(low for _, low in ends))
    if file is not None:
        file.write_text(json.dumps(found), encoding="utf-8")
    return found


def dominant(ends: tuple[float, float]) -> float:
    """Pick the end of larger size.

    Returns:
        It, with its sign.
    """
    return max(ends, key=abs)
