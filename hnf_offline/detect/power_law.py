"""The power law a + b t^-c of a learning curve, what it expects of further training, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import f as fisher

from hnf_offline.detect.autocorrelation import lag_one
from hnf_offline.detect.trailing import Floats
from hnf_offline.quantities.loss_curve import expected_gain, power_law

#: Exponents between which the best is searched; an interval that reaches an end of them is open there.
EXPONENTS = np.geomspace(0.02, 4.0, 80)
#: The beginning (warm-up, the first fall) is left out; the rest is averaged over equal stretches of log t.
BEGINNING, BLOCKS, ROWS = 0.05, 40, 100
#: The last step over the first: over less, a power law, a line and a jump look alike.
SPAN = 2.0
#: An exponent this near to the highest that is tried is the limit of the search, not of the loss.
STEEPEST = 0.99
#: A fit that explains less of the block means says nothing.
EXPLAINED = 0.5
#: What is left of the variance is rounding below this, whose correlation says nothing against the power law.
ROUNDING = 1e-12
#: Moments of log t within a block that give the mean of a power: a block spans 0.075, so the rest is below 1e-10.
MOMENTS = 9
#: Degrees of freedom below which no interval is given.
FREEDOM = 3.0
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
    residuals' correlation leaves, and at each of them the linear error of a and of the gain. The power is averaged
    over the same stretches as the loss, so that a curve without noise leaves nothing.

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
    if steps[-1] < SPAN * max(steps[0], 1):
        return f"a power law needs steps that grow {SPAN:g}-fold: these only show where the run already was"
    unit = float(steps[-1])
    curve = _Blocks.of(steps / unit, loss)
    total = float(np.sum(curve.weight * (curve.level - curve.mean) ** 2))
    grid = [curve.fit(float(c)) for c in EXPONENTS]
    best = _best(curve, grid)
    squares = max(best.square, curve.rounding)
    if not total > 0 or 1 - squares / total < EXPLAINED or best.amplitude <= 0:
        return "the loss does not fall as a power law does"
    if best.exponent >= STEEPEST * EXPONENTS[-1]:
        return "the loss falls faster than a power law does: a jump, or a run that has just begun again"
    phi = min(max(float(lag_one(best.residual)), 0.0), 0.9)
    freedom = curve.level.size * (1 - phi) / (1 + phi) - 3
    if squares <= ROUNDING * total:
        freedom = max(freedom, FREEDOM)
    if freedom < FREEDOM:
        return "what is left of the loss beside a power law is no noise"
    spread = squares / freedom * float(fisher.ppf(LEVEL, 1, freedom))
    near, open_low, open_high = _not_worse(curve, [*grid, best], squares + spread)
    floors, gains = [], []
    for one in near:
        reach = float(np.sqrt(max(squares + spread - one.square, 0.0)))
        fall = 1 - 2.0**-one.exponent
        floors += [one.floor - reach * one.error_floor, one.floor + reach * one.error_floor]
        gains += [
            fall * (one.amplitude - reach * one.error_amplitude),
            fall * (one.amplitude + reach * one.error_amplitude),
        ]
    exponent, floor = best.exponent, best.floor
    true_amplitude = best.amplitude * unit**exponent
    lowest = max(min(floors), 0.0) if curve.positive else min(floors)
    return PowerLaw(
        floor=floor,
        exponent=exponent,
        amplitude=true_amplitude,
        floor_interval=(None if open_low else float(lowest), float(max(floors))),
        exponent_interval=(
            None if open_low else near[0].exponent,
            None if open_high else near[-1].exponent,
        ),
        explained=1 - squares / total,
        gain=expected_gain(unit, true_amplitude, exponent),
        gain_interval=(float(max(min(gains), 0.0)), float(max(gains))),
        last_step=int(steps[-1]),
        level=float(power_law(np.array([unit]), floor, true_amplitude, exponent)[0]),
    )


@dataclass(frozen=True, slots=True)
class _Linear:
    """The fit at one exponent; errors of floor and amplitude are in units of the noise of weight one."""

    exponent: float
    floor: float
    amplitude: float
    square: float
    error_floor: float
    error_amplitude: float
    residual: Floats


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Means of the loss over equal stretches of log t, and what it takes to average a power alike."""

    log_time: Floats
    moments: Floats
    level: Floats
    weight: Floats
    positive: bool

    @classmethod
    def of(cls, time: Floats, loss: Floats) -> _Blocks:
        edges = np.geomspace(float(time[0]), float(time[-1]) * (1 + 1e-9), BLOCKS + 1)
        block = np.clip(np.searchsorted(edges, time, side="right") - 1, 0, BLOCKS - 1)
        _, block = np.unique(block, return_inverse=True)
        weight = np.bincount(block).astype(np.float64)
        log_time = np.bincount(block, np.log(time)) / weight
        around = log_time[block] - np.log(time)
        moments = [np.bincount(block, around**k) / weight / factorial(k) for k in range(MOMENTS)]
        level = np.bincount(block, loss) / weight
        return cls(log_time, np.array(moments), level, weight, bool((loss > 0).all()))

    @property
    def mean(self) -> float:
        return float(np.average(self.level, weights=self.weight))

    @property
    def rounding(self) -> float:
        """The sum of squares that rounding alone leaves of a mean."""
        return float(self.weight.sum() * (np.finfo(np.float64).eps * np.abs(self.level).max()) ** 2)

    def fit(self, exponent: float) -> _Linear:
        """Weighted least squares of level = a + b mean(t^-c); a is 0 where it would be negative and must not be.

        Returns:
            The fit.
        """
        power = np.exp(-exponent * self.log_time) * (exponent ** np.arange(MOMENTS) @ self.moments)
        centre = float(np.average(power, weights=self.weight))
        around = float(np.sum(self.weight * (power - centre) ** 2))
        b = float(np.sum(self.weight * (power - centre) * (self.level - self.mean))) / around
        a = self.mean - b * centre
        error_a, error_b = float(np.sqrt(1 / self.weight.sum() + centre**2 / around)), float(around**-0.5)
        if self.positive and a < 0:
            about_zero = float(np.sum(self.weight * power**2))
            a, b = 0.0, float(np.sum(self.weight * self.level * power)) / about_zero
            error_a, error_b = 0.0, float(about_zero**-0.5)
        residual = np.sqrt(self.weight) * (self.level - a - b * power)
        return _Linear(exponent, a, b, float(residual @ residual), error_a, error_b, residual)


def _best(curve: _Blocks, grid: list[_Linear]) -> _Linear:
    # The grid finds the valley, the search its bottom.
    row = int(np.argmin([one.square for one in grid]))
    ends = np.log(EXPONENTS[[max(row - 1, 0), min(row + 1, EXPONENTS.size - 1)]])
    found = minimize_scalar(
        lambda log_c: curve.fit(float(np.exp(log_c))).square,
        bounds=(float(ends[0]), float(ends[1])),
        method="bounded",
        options={"xatol": 1e-10},
    )
    between = curve.fit(float(np.exp(found.x)))
    return between if between.square < grid[row].square else grid[row]


def _not_worse(curve: _Blocks, fits: list[_Linear], allowed: float) -> tuple[list[_Linear], bool, bool]:
    """Fits over the exponents whose sum of squares is allowed, the ends of the interval among them.

    Returns:
        The fits by exponent, and whether the interval is open at its low and at its high end.
    """
    near = sorted((one for one in fits if one.square <= allowed), key=lambda one: one.exponent)
    open_low, open_high = near[0].exponent <= EXPONENTS[0], near[-1].exponent >= EXPONENTS[-1]

    def end(within: float, beyond: float) -> _Linear:
        return curve.fit(float(brentq(lambda c: curve.fit(c).square - allowed, within, beyond, xtol=1e-12)))

    first, last = near[0].exponent, near[-1].exponent
    if not open_low:
        near.insert(0, end(first, float(EXPONENTS[first > EXPONENTS][-1])))
    if not open_high:
        near.append(end(last, float(EXPONENTS[last < EXPONENTS][0])))
    return near, open_low, open_high
