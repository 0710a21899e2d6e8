"""A second look at layers that raise an alarm: a fresh start, and one exact product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from hnf_offline.linalg.extremes import Extremes
from hnf_offline.linalg.operator import Scaled
from hnf_offline.linalg.stopping import CERTIFIED
from hnf_offline.profile.batch import MicroBatch
from hnf_offline.profile.layer_curvature import LayerProblem, LayerProducts, exact_graph, layer_extremes
from hnf_offline.profile.subject import Subject
from hnf_offline.profile.suffix.calibration import Calibration

#: From this S on, a value is looked at again (the band of the catalogue).
ALARMED = 0.8
#: As many layers at most, those with the largest S.
MOST_ALARMED = 3
#: A graph of second derivatives keeps up to this many times what a gradient does.
_GRAPH = 5


def second_look(
    subject: Subject,
    batches: Sequence[MicroBatch],
    products: LayerProducts,
    calibration: Calibration,
    problems: Sequence[LayerProblem],
    solved: Sequence[Extremes],
) -> list[Extremes]:
    """Solve alarmed layers again from where they were with a fresh vector beside it, and multiply once exactly."""
    ranked = sorted(
        (number for number, problem in enumerate(problems) if problem.scale is not None),
        key=lambda number: -solved[number].largest.value,
    )
    alarmed = [number for number in ranked[:MOST_ALARMED] if solved[number].largest.value >= ALARMED]
    results = list(solved)
    if not alarmed:
        return results
    rule = replace(CERTIFIED, both_ends=False)
    again = [replace(problems[number], start=solved[number].vector, rule=rule) for number in alarmed]
    for number, problem, extremes in zip(
        alarmed, again, layer_extremes(products, again, calibration), strict=True
    ):
        results[number] = _verified(subject, batches, problem, extremes)
    return results


def _verified(
    subject: Subject, batches: Sequence[MicroBatch], problem: LayerProblem, extremes: Extremes
) -> Extremes:
    """Replace the largest end's value and residual by those that an exact product at its Ritz vector gives."""
    names = frozenset(part.parameter for part in problem.layer.parts)
    # A graph of second derivatives keeps several times what a gradient does: a few rows at a time.
    small = [piece for batch in batches for piece in batch.split(max(1, len(batch.tokens) // _GRAPH))]
    try:
        graph = exact_graph(subject.module, small, keep=False, names=names)
    except RuntimeError:
        return extremes  # a kernel without a second derivative
    assert problem.scale is not None
    vector = extremes.vector
    image = Scaled(graph.block(problem.layer.parts), problem.scale)(vector)
    value = vector @ image
    residual = (image - value * vector).norm()
    exact_value, exact_residual = torch.stack([value, residual]).tolist()
    certified = extremes.largest.certified and exact_residual <= 2 * CERTIFIED.residual * abs(exact_value)
    return replace(
        extremes,
        largest=replace(extremes.largest, value=exact_value, residual=exact_residual, certified=certified),
    )
