"""Cost against number of layers, rows and checkpoints: small tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.curvature.model import LENGTH, Size
from benchmarks.curvature.ours import Ours, ours
from benchmarks.curvature.peers import pyhessian
from benchmarks.curvature.problem import Problem
from benchmarks.curvature.timing import Spread, cost
from benchmarks.curvature.training import EVERY, train

#: Models of these tables are trained this long only: their curvature is measured, not what they learned.
STEPS = 60


@dataclass(frozen=True, slots=True)
class Point:
    """One row of a small table.

    Attributes:
        what: number of blocks, rows, or checkpoints.
        targets: layers and the whole model.
        tokens: of the batch.
        cold: forwards without knowing anything before.
        given: forwards given the previous checkpoint; of several checkpoints, mean of one.
        seconds: processor seconds of what `given` counts.
        peer: forwards of PyHessian at its default, None where it was not run.
    """

    what: int
    targets: int
    tokens: int
    cold: Spread
    given: Spread
    seconds: Spread
    peer: float | None


def against_blocks(
    size: Size, blocks: tuple[int, ...], cache_folder: Path, repeats: int, tell: Callable[[str], None]
) -> list[Point]:
    """Measure models of different depth.

    Returns:
        One point a depth.
    """
    points = []
    for count in blocks:
        deeper = replace(size, blocks=count, steps=STEPS)
        points.append(_point(count, deeper, train(deeper, cache_folder), deeper.rows, repeats, peer=True))
        tell(f"{count} blocks: {points[-1].given.median:.0f} forwards")
    return points


def against_rows(
    size: Size, rows: tuple[int, ...], cache_folder: Path, repeats: int, tell: Callable[[str], None]
) -> list[Point]:
    """Measure batches of different size.

    Returns:
        One point a number of rows.
    """
    points = []
    for count in rows:
        points.append(_point(count, size, train(size, cache_folder), count, repeats, peer=False))
        tell(f"{count} rows: {points[-1].given.median:.0f} forwards")
    return points


def against_checkpoints(
    size: Size, counts: tuple[int, ...], cache_folder: Path, tell: Callable[[str], None]
) -> list[Point]:
    """Measure the last checkpoints one after the other, each given the one before.

    Returns:
        One point a number of checkpoints.
    """
    folder = train(size, cache_folder)
    points = []
    for count in counts:
        known: Ours | None = None
        forwards: list[float] = []
        seconds: list[float] = []
        for step in range(size.steps - (count - 1) * EVERY, size.steps + 1, EVERY):
            problem = Problem.at(size, folder, step)
            spent, known = cost(problem, partial(ours, problem, "standard", known))
            forwards.append(spent.forwards)
            seconds.append(spent.seconds)
        mean, seconds_mean = sum(forwards) / count, sum(seconds) / count
        points.append(
            Point(
                count, len(problem.targets), problem.tokens.numel(), Spread.of(forwards[:1]),
                Spread(mean, min(forwards), max(forwards), count),
                Spread(seconds_mean, min(seconds), max(seconds), count), None,
            )
        )  # fmt: skip
        tell(f"{count} checkpoints: {mean:.0f} forwards each")
    return points


def _point(what: int, size: Size, folder: Path, rows: int, repeats: int, *, peer: bool) -> Point:
    problem = Problem.at(size, folder, size.steps, rows)
    before = ours(Problem.at(size, folder, size.steps - EVERY, rows), "standard")
    cold = [cost(problem, lambda: ours(problem, "standard"))[0] for _ in range(repeats)]
    given = [cost(problem, lambda: ours(problem, "standard", before))[0] for _ in range(repeats)]
    return Point(
        what,
        len(problem.targets),
        rows * LENGTH,
        Spread.of([one.forwards for one in cold]),
        Spread.of([one.forwards for one in given]),
        Spread.of([one.seconds for one in given]),
        cost(problem, lambda: pyhessian(problem, 1e-3))[0].forwards if peer else None,
    )
