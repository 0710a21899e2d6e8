"""One axis: values to pixels, and ticks a reader can count with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hnf_offline.report.chart import Array, Strip

#: Beyond this an axis cannot reach; such values run out of the picture.
_LARGEST = 1e300


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps low..high to start..stop, linearly or logarithmically.

    Attributes:
        low: value at `start`.
        high: value at `stop`.
        start: pixel of `low`.
        stop: pixel of `high`.
        scale: "linear" or "log".
    """

    low: float
    high: float
    start: float
    stop: float
    scale: str = "linear"

    def share(self, values: Array | float) -> Array:
        """Place values between 0 (low) and 1 (high).

        Returns:
            Shares; outside 0..1 beyond the ends.
        """
        values = np.asarray(values, dtype=np.float64)
        if self.scale == "log":
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.asarray(
                    (np.log(values) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
                )
        return np.asarray((values - self.low) / (self.high - self.low))

    def pixels(self, values: Array | float) -> Array:
        """Place values in pixels.

        Returns:
            Pixels, not clipped.
        """
        return np.asarray(self.start + (self.stop - self.start) * self.share(values))

    def pixel(self, value: float) -> float:
        """Place one value.

        Returns:
            Its pixel.
        """
        return float(self.pixels(value))

    def ticks(self, count: int = 5) -> list[float]:
        """Choose round tick values.

        Returns:
            About `count` values inside the axis, ascending.
        """
        if self.scale == "log" and self.high / self.low > 5:
            return _log_ticks(self.low, self.high, count)
        return _linear_ticks(self.low, self.high, count)


def _linear_ticks(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    stride = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / stride - 1e-9)
    last = math.floor(high / stride + 1e-9)
    return [round(index * stride, 12) + 0.0 for index in range(first, last + 1)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = [power for power in range(first, last + 1) if low * 0.999 <= 10.0**power <= high * 1.001]
    if len(powers) > 1:
        every = math.ceil(len(powers) / (count + 1))
        return [10.0**power for power in powers[::every]]
    between = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
    return [tick for tick in between if low * 0.999 <= tick <= high * 1.001]


def value_axis(strip: Strip, top: float, bottom: float, first: float, last: float) -> Axis:
    """Make the vertical axis of a strip: all finite values between first and last, and every threshold, fit.

    Returns:
        An axis with a little air at both ends.
    """
    seen: list[Array] = [np.array([level.value for level in strip.levels])]
    for line in strip.lines:
        inside = (line.steps >= first) & (line.steps <= last)
        seen.append(line.values[inside])
        seen.extend(ends[inside] for ends in (line.low, line.high) if ends is not None)
    values = np.concatenate(seen)
    values = values[np.abs(values) < _LARGEST]  # neither NaN nor what leaves no room for air around it
    if strip.cap is not None:
        values = values[values <= strip.cap]
    if strip.scale == "log":
        values = values[values > 1 / _LARGEST]
    if values.size == 0:
        return Axis(0.0, 1.0, bottom, top)
    low, high = float(values.min()), float(values.max())
    if strip.scale == "log":
        air = max((high / low) ** 0.06, 1.05)
        return Axis(low / air, high * air, bottom, top, "log")
    spread = next(one for one in (high - low, abs(high), 1.0) if one > 1 / _LARGEST)
    floor = 0.0 if 0 <= low < 0.25 * high else low - 0.06 * spread
    return Axis(floor, high + 0.08 * spread, bottom, top)


def segments(
    steps: Array, values: Array, reach: float | None, first: float, last: float, columns: int
) -> list[tuple[Array, Array]]:
    """Cut a series where it is not finite or its points lie too far apart, and thin it to 2 points a pixel.

    Every pixel column keeps its lowest and its highest point, so no spike is lost.

    Returns:
        Pieces (steps, values) to be joined by straight lines.
    """
    # Keep one point beyond either end, so that a clipped line runs to the edge.
    start = max(int(np.searchsorted(steps, first)) - 1, 0)
    stop = int(np.searchsorted(steps, last, side="right")) + 1
    steps, values = steps[start:stop], values[start:stop]
    finite = np.isfinite(values)
    if not finite.any():
        return []
    joined = finite[1:] & finite[:-1]
    if reach is not None:
        joined &= np.diff(steps) <= reach
    cuts = np.flatnonzero(~joined) + 1
    pieces = []
    for piece in np.split(np.arange(len(steps)), cuts):
        if finite[piece].all():
            keep = piece[_extremes(steps[piece], values[piece], first, last, columns)]
            pieces.append((steps[keep], values[keep]))
    return pieces


def _extremes(steps: Array, values: Array, first: float, last: float, columns: int) -> np.ndarray:
    if len(steps) <= 2 * columns:
        return np.arange(len(steps))
    column = np.floor((steps - first) / (last - first) * columns)
    starts = np.flatnonzero(np.concatenate(([True], column[1:] != column[:-1])))
    keep: list[int] = []
    for begin, end in zip(starts, np.append(starts[1:], len(steps)), strict=True):
        inside = values[begin:end]
        keep.extend(sorted({int(begin) + int(np.argmin(inside)), int(begin) + int(np.argmax(inside))}))
    return np.array(keep)
