"""The power law a + b t^-c of a learning curve, what it expects of further training, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as fisher

from hnf_offline.detect.autocorrelation import lag_one
from hnf_offline.detect.trailing import Floats
from hnf_offline.quantities.loss_curve import expected_gain, power_law

#: Exponents that are tried; an interval that reaches an end of them is open there.
EXPONENTS = np.geomspace(0.02, 4.0, 240)
#: The beginning (warm-up, the first fall) is left out; the rest is averaged over equal stretches of log t.
BEGINNING, BLOCKS, ROWS = 0.05, 40, 100
#: A fit that explains less of the block means says nothing.
EXPLAINED = 0.5
LEVEL = 0.95
#: A gain of this share of the loss is worth as many steps again.
WORTH = 0.01


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """A fitted power law; each (low, high) is a 95 % interval, None where the rows do not bound it.

    Attributes:
        floor: a, the loss it would end at.
        exponent: c.
        amplitude: b.
        floor_interval: of a.
        exponent_interval: of c.
        explained: share of the variance of the block means.
        gain: the fall expected of as many steps again.
        gain_interval: of the gain.
        last_step: the step it is expected from.
        level: the fitted loss there.
    """

    floor: float
    exponent: float
    amplitude: float
    floor_interval: tuple[float | None, float | None]
    exponent_interval: tuple[float | None, float | None]
    explained: float
    gain: float
    gain_interval: tuple[float, float]
    last_step: int
    level: float

    @property
    def worth(self) -> str:
        """Whether as many steps again are expected to gain 1 % of the loss: "yes", "no" or "cannot say"."""
        least = WORTH * abs(self.level)
        if self.gain_interval[0] > least:
            return "yes"
        return "no" if self.gain_interval[1] < least else "cannot say"


def fit_power_law(steps: NDArray[np.int64], loss: Floats) -> PowerLaw | str:
    """Fit a power law to a learning curve.

    For each exponent c the other two parameters are linear; the sum of squares over c is the profile from which
    the intervals come: values of c whose fit is not worse, by an F test with the degrees of freedom that the
    residuals' correlation leaves, and at each of them the linear error of a and of the gain.

    Args:
        steps: ascending, of finite losses.
        loss: one a step.

    Returns:
        The fit, or the reason why there is none.
    """
    keep = steps >= max(BEGINNING * float(steps[-1]), 1.0) if steps.size else np.zeros(0, dtype=np.bool_)
    steps, loss = steps[keep], loss[keep]
    if steps.size < ROWS:
        return f"a power law needs {ROWS} rows after the first 5 % of the steps"
    time, level, weight = _block_means(steps, loss)
    unit = float(steps[-1])
    scaled = time / unit
    positive = bool((loss > 0).all())
    fits = [_linear(scaled, level, weight, float(c), positive) for c in EXPONENTS]
    squares = np.array([one[2] for one in fits])
    best = int(np.argmin(squares))
    total = float(np.sum(weight * (level - np.average(level, weights=weight)) ** 2))
    explained = 1 - squares[best] / total if total > 0 else 0.0
    amplitude, floor = fits[best][1], fits[best][0]
    if explained < EXPLAINED or amplitude <= 0:
        return "the loss does not fall as a power law does"
    residual = np.sqrt(weight) * (level - floor - amplitude * scaled ** -EXPONENTS[best])
    phi = min(max(float(lag_one(residual)), 0.0), 0.9)
    freedom = time.size * (1 - phi) / (1 + phi) - 3
    if freedom < 3:
        return "what is left of the loss beside a power law is no noise"
    variance = squares[best] / freedom
    allowed = squares[best] + variance * float(fisher.ppf(LEVEL, 1, freedom))
    near = np.flatnonzero(squares <= allowed)
    half = float(np.sqrt(variance * fisher.ppf(LEVEL, 1, freedom)))
    open_low, open_high = near[0] == 0, near[-1] == EXPONENTS.size - 1
    floors, gains = [], []
    for row in near:
        a, b, square, error_a, error_b = fits[row]
        left = float(np.sqrt(max(allowed - square, 0.0) / (allowed - squares[best])))
        fall = 1 - 2.0 ** -EXPONENTS[row]
        floors += [a - left * half * error_a, a + left * half * error_a]
        gains += [fall * (b - left * half * error_b), fall * (b + left * half * error_b)]
    exponent = float(EXPONENTS[best])
    true_amplitude = amplitude * unit**exponent
    lowest = max(min(floors), 0.0) if positive else min(floors)
    return PowerLaw(
        floor=float(floor),
        exponent=exponent,
        amplitude=float(true_amplitude),
        floor_interval=(None if open_low else float(lowest), float(max(floors))),
        exponent_interval=(
            None if open_low else float(EXPONENTS[near[0]]),
            None if open_high else float(EXPONENTS[near[-1]]),
        ),
        explained=float(explained),
        gain=expected_gain(unit, true_amplitude, exponent),
        gain_interval=(float(max(min(gains), 0.0)), float(max(gains))),
        last_step=int(steps[-1]),
        level=float(power_law(np.array([unit]), float(floor), true_amplitude, exponent)[0]),
    )


def _block_means(steps: NDArray[np.int64], loss: Floats) -> tuple[Floats, Floats, Floats]:
    # Means over equal stretches of log t, and how many rows are in each.
    edges = np.geomspace(float(steps[0]), float(steps[-1]) * (1 + 1e-9), BLOCKS + 1)
    block = np.clip(np.searchsorted(edges, steps, side="right") - 1, 0, BLOCKS - 1)
    count = np.bincount(block, minlength=BLOCKS).astype(np.float64)
    filled = count > 0
    time = np.exp(np.bincount(block, np.log(steps), BLOCKS)[filled] / count[filled])
    return time, np.bincount(block, loss, BLOCKS)[filled] / count[filled], count[filled]


def _linear(
    time: Floats, level: Floats, weight: Floats, exponent: float, positive: bool
) -> tuple[float, float, float, float, float]:
    """Weighted least squares of level = a + b time^-exponent; a is 0 where it would be negative and must not be.

    Returns:
        a, b, the sum of squares, and the errors of a and b in units of the noise of weight one.
    """
    design = np.column_stack([np.ones(time.size), time**-exponent])
    normal = design.T @ (weight[:, None] * design)
    a, b = np.linalg.solve(normal, design.T @ (weight * level))
    errors = np.sqrt(np.maximum(np.diag(np.linalg.inv(normal)), 0.0))
    if positive and a < 0:
        a, b = 0.0, float(np.sum(weight * level * design[:, 1]) / normal[1, 1])
        errors = np.array([0.0, 1 / np.sqrt(normal[1, 1])])
    square = float(np.sum(weight * (level - a - b * design[:, 1]) ** 2))
    return float(a), float(b), square, float(errors[0]), float(errors[1])
