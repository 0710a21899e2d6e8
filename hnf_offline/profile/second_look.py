"""A second look at layers that raise an alarm: from where they were, with a fresh vector beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hnf_offline.linalg.extremes import Extremes
from hnf_offline.linalg.stopping import CERTIFIED, StopRule
from hnf_offline.profile.layer_curvature import (
    LayerProblem,
    LayerProducts,
    layer_extremes,
    start_vector,
)
from hnf_offline.profile.noise import Noise

#: From this S on, a value is looked at again (the band of the catalogue).
ALARMED = 0.8
#: As many layers at most, those with the largest S.
MOST_ALARMED = 3


def second_look(
    products: LayerProducts,
    problems: Sequence[LayerProblem],
    solved: Sequence[Extremes],
    noise: Noise,
) -> list[Extremes]:
    """Solve alarmed layers again, to the accuracy `certified`.

    Args:
        products: exact ones.
        problems: scaled ones.
        solved: what is known of them.
        noise: for the fresh vectors.

    Returns:
        One result a problem, the alarmed ones new.
    """
    ranked = sorted(range(len(solved)), key=lambda number: -solved[number].largest.value)
    alarmed = [number for number in ranked[:MOST_ALARMED] if solved[number].largest.value >= ALARMED]
    rule = replace(CERTIFIED, ends="largest")
    again = [_again(problems[number], solved[number], rule, noise) for number in alarmed]
    results = list(solved)
    for number, extremes in zip(alarmed, layer_extremes(products, again), strict=True):
        results[number] = extremes
    return results


def _again(problem: LayerProblem, solved: Extremes, rule: StopRule, noise: Noise) -> LayerProblem:
    size = problem.layer.size
    known = problem.start if problem.fresh is None else problem.fresh
    start = start_vector(noise(size), known, solved.vector)
    return replace(problem, start=start, rule=rule, fresh=noise.fresh(size))
