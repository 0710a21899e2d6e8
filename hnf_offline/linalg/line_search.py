"""The first place along a ray where a function rises above its start, from values alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

#: The search looks at multiples between these, and leaves the rise in a bracket this narrow.
SMALLEST, LARGEST, PRECISION = 1 / 64, 64.0, 1 / 16


@dataclass(frozen=True, slots=True)
class FirstRise:
    """Where a function along a ray first rises above its value at 0.

    Attributes:
        value: middle of the bracket; the edge of the searched range where no crossing lies in it.
        low: largest multiple known not to rise; 0 where the function rises from the start.
        high: smallest multiple known to rise; infinite where none was found.
        certified: a crossing was found, and both a fall before it and a rise behind it were larger than the noise.
        probes: values of the function that were asked for.
    """

    value: float
    low: float
    high: float
    certified: bool
    probes: int


def quadratic_guess(slope: float, curvature: float, otherwise: float = 1.0) -> float:
    """Give the first rise of the parabola slope c + curvature c^2 / 2, which is -2 slope / curvature.

    Args:
        slope: derivative along the ray at 0.
        curvature: second derivative along the ray at 0.
        otherwise: what to give where the parabola falls for ever, or is no parabola.

    Returns:
        A positive multiple.
    """
    if slope < 0 < curvature:
        guess = -2 * slope / curvature
        if math.isfinite(guess) and guess > 0:
            return guess
    return otherwise


def first_rise(
    change: Callable[[float], float],
    guess: float = 1.0,
    *,
    smallest: float = SMALLEST,
    largest: float = LARGEST,
    precision: float = PRECISION,
    noise: float = 0.0,
) -> FirstRise:
    """Find the smallest multiple c at which change(c) > 0: doubling or halving from a guess, then bisection.

    A change that is not finite counts as a rise. With a guess that is right within a factor of two it takes five
    or six values, seven where the guess is the crossing itself. A rise that is over again between two neighbouring
    probes is not seen.

    Args:
        change: c -> f(c) - f(0), for c > 0.
        guess: where to look first; kept between `smallest` and `largest`.
        smallest: multiples below are not looked at.
        largest: multiples above are not looked at.
        precision: width of the final bracket, relative to its upper end.
        noise: size up to which a change may be rounding.

    Returns:
        The bracket.

    Source: Kalra et al. 2026 (arXiv 2601.16979), critical sharpness; the search is theirs, the guess is not.
    """
    values: list[float] = []

    def rises(multiple: float) -> bool:
        value = change(multiple)
        values.append(value if math.isfinite(value) else math.inf)
        return not value <= 0 or value == -math.inf

    at = min(max(guess, smallest), largest)
    if rises(at):
        low, high = 0.0, at
        while low == 0.0:
            if high <= smallest:
                return FirstRise(high, 0.0, high, False, len(values))
            at = max(high / 2, smallest)
            low, high = (low, at) if rises(at) else (at, high)
    else:
        low, high = at, math.inf
        while math.isinf(high):
            if low >= largest:
                return FirstRise(low, low, math.inf, False, len(values))
            at = min(2 * low, largest)
            low, high = (low, at) if rises(at) else (at, high)
    while high - low > precision * high:
        middle = (low + high) / 2
        low, high = (low, middle) if rises(middle) else (middle, high)
    if min(values) >= -noise:  # the guess hit the crossing itself: look into the dip once
        rises(low / 2)
    clear = min(values) < -noise and max(values) > noise
    return FirstRise((low + high) / 2, low, high, clear, len(values))
