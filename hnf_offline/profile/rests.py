"""What layers' eigenvalues that were found with differences of gradients rest on in the end.

Differences are off by half a step times the third derivative, and by rounding. Along a Ritz vector the first shows in
nothing that differences themselves say. So at every accuracy that promises more, one exact
product with the Ritz vector of the dominant end replaces its value by the exact Rayleigh quotient, with its true
residual; what turns out otherwise than it was said is solved again with exact products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hnf_offline.linalg.extremes import Eigenvalue, Extremes
from hnf_offline.profile.layer_curvature import LayerProblem, LayerProducts, layer_extremes
from hnf_offline.profile.suffix.calibration import GOOD, USABLE

#: A true residual may be so many times what the rule asks of that by differences.
_RESIDUAL = 2.0
#: Relative error that a certified value may have by its true residual.
_PROMISED = 0.01


def rest_on(
    products: LayerProducts,
    certain: LayerProducts,
    problems: Sequence[LayerProblem],
    solved: Sequence[Extremes],
    *,
    verify: bool,
) -> tuple[list[Extremes], frozenset[int]]:
    """Give what was found its error bars, and solve again what differences cannot give.

    Args:
        products: what it was found with.
        certain: exact ones of the same.
        problems: all of them.
        solved: one result a problem.
        verify: hold the dominant end of each against an exact product.

    Returns:
        The results, and the numbers of those that were solved again, exactly.
    """
    by_differences = [number for number, problem in enumerate(problems) if not products.is_exact(problem)]
    results = list(solved)
    for number in by_differences:
        results[number] = with_product_error(solved[number], products.error(problems[number]))
    # Less symmetric than they may be off: what was calibrated holds here no longer.
    strays = [number for number in by_differences if not solved[number].asymmetry <= USABLE]
    sound = sorted({*by_differences} - {*strays}) if verify else []
    for number, dominant in zip(sound, _verified(certain, problems, solved, sound), strict=True):
        found, problem = solved[number], problems[number]
        if found.dominant[0].certified and not dominant.certified:
            strays.append(number)
        is_smallest = found.smallest_vector is not None
        other = results[number].largest if is_smallest else results[number].smallest
        good = max(products.error(problem), found.asymmetry) <= GOOD
        other = replace(other, certified=other.certified and good)
        ends = (other, dominant) if is_smallest else (dominant, other)
        results[number] = replace(found, largest=ends[0], smallest=ends[1], products=found.products + 1)
    again = layer_extremes(certain, [problems[number] for number in strays])
    for number, extremes in zip(strays, again, strict=True):
        results[number] = extremes
    return results, frozenset(strays)


def _verified(
    certain: LayerProducts,
    problems: Sequence[LayerProblem],
    solved: Sequence[Extremes],
    chosen: Sequence[int],
) -> list[Eigenvalue]:
    """The dominant ends by one exact product each."""
    asked = [problems[number] for number in chosen]
    figures: dict[int, Tensor] = {}
    for _, group in certain.groups(asked):
        vectors = [solved[chosen[place]].dominant[1] for place in group]
        images = certain(
            [asked[place] for place in group],
            [_scaled(asked[place], vector) for place, vector in zip(group, vectors, strict=True)],
        )
        for place, vector, image in zip(group, vectors, images, strict=True):
            own = _scaled(asked[place], image)
            value = vector @ own
            figures[place] = torch.stack([value, torch.linalg.vector_norm(own - value * vector)])
    fetched = torch.stack([figures[place] for place in range(len(chosen))]).tolist() if chosen else []
    return [
        _judged(solved[number].dominant[0], value, residual, problem.rule.residual)
        for number, problem, (value, residual) in zip(chosen, asked, fetched, strict=True)
    ]


def _judged(said: Eigenvalue, value: float, residual: float, allowed: float) -> Eigenvalue:
    # error = r^2 / gap, and the gap is what differences saw.
    error = min(residual, said.error * (residual / said.residual) ** 2) if said.residual > 0 else residual
    holds = (
        residual <= _RESIDUAL * allowed * abs(value)
        and error <= _PROMISED * abs(value)
        and abs(value - said.value) <= USABLE * abs(value)
    )
    return Eigenvalue(value, residual, said.certified and holds, error)


def _scaled(problem: LayerProblem, vector: Tensor) -> Tensor:
    return vector if problem.scale is None else problem.scale * vector


def with_product_error(extremes: Extremes, error: float) -> Extremes:
    """Widen the residuals of both ends by the error of the products they were found with.

    Args:
        extremes: as they were found.
        error: relative to the larger end; NaN where it is not known.

    Returns:
        The extremes; nothing is certified where the error is not known.
    """
    scale = max(abs(extremes.largest.value), abs(extremes.smallest.value))

    def widened(end: Eigenvalue) -> Eigenvalue:
        known = not math.isnan(error)
        residual = end.residual + (error if known else 0.0) * scale
        return replace(end, residual=residual, certified=end.certified and known)

    return replace(extremes, largest=widened(extremes.largest), smallest=widened(extremes.smallest))
