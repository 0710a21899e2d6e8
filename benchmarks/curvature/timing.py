"""Cost in forward passes: processor time of a tool over that of one forward pass beside it, in one process."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.curvature.problem import Problem

Result = TypeVar("Result")
#: Forward passes timed before and after every measurement.
FORWARDS = 15


@dataclass(frozen=True, slots=True)
class Cost:
    """What one piece of work cost.

    Attributes:
        forwards: in forward passes of the same rows.
        seconds: of processor time.
    """

    forwards: float
    seconds: float


def cost(problem: Problem, work: Callable[[], Result]) -> tuple[Cost, Result]:
    """Time work between two series of forward passes; their common median is the unit.

    Returns:
        The cost, and what the work gave.
    """
    gc.collect()
    unit = _forward_seconds(problem)
    seconds, result = processor_seconds(work)
    unit += _forward_seconds(problem)
    return Cost(seconds / statistics.median(unit), seconds), result


def processor_seconds(work: Callable[[], Result]) -> tuple[float, Result]:
    """Time work by this process's processor time, which other processes do not add to.

    Returns:
        Seconds, and what the work gave.
    """
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def _forward_seconds(problem: Problem) -> list[float]:
    problem.forward()
    return [processor_seconds(problem.forward)[0] for _ in range(FORWARDS)]


@dataclass(frozen=True, slots=True)
class Spread:
    """Some repeats of one figure.

    Attributes:
        median: the figure.
        low: its least.
        high: its greatest.
        repeats: how many.
    """

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise repeats.

        Returns:
            Median and range.
        """
        return cls(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors of dominant eigenvalues against the tight reference.

    Attributes:
        cases: targets times checkpoints.
        median: half of the cases are better.
        tenth: one in ten is worse (90th percentile).
        worst: the largest.
        over_one: share of cases more than 1 % off; NaN counts as off.
        over_five: share more than 5 % off.
    """

    cases: int
    median: float
    tenth: float
    worst: float
    over_one: float
    over_five: float

    @classmethod
    def of(cls, errors: Sequence[float]) -> Errors:
        """Summarise errors.

        Returns:
            Their quantiles and shares.
        """
        # A value that is NaN is as wrong as can be.
        ordered = sorted(float("inf") if math.isnan(error) else error for error in errors)
        return cls(
            len(ordered),
            statistics.median(ordered),
            ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))],
            ordered[-1],
            sum(error > 0.01 for error in ordered) / len(ordered),
            sum(error > 0.05 for error in ordered) / len(ordered),
        )
