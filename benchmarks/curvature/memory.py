"""Peak memory of every tool in a fresh process, and whether memory grows over checkpoints; read from Linux's /proc."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.curvature.model import LENGTH, Size
from benchmarks.curvature.ours import ACCURACIES, Ours, ours
from benchmarks.curvature.peers import curvlinops, eigenthings, naive, pyhessian
from benchmarks.curvature.problem import WHOLE, Problem
from benchmarks.curvature.timing import Spread
from benchmarks.curvature.training import EVERY, train

ROWS = 32
#: A peer's largest graph is that of the first layer or of the whole model: others add nothing to its peak.
_FIRST_AND_WHOLE = 1


def _worker(name: str) -> Callable[[Problem], object]:
    if name in ACCURACIES:
        return lambda problem: ours(problem, name)

    def largest(problem: Problem, layers_only: bool = False) -> Problem:
        targets = problem.targets[:_FIRST_AND_WHOLE]
        return replace(problem, targets=targets if layers_only else (*targets, WHOLE))

    works: dict[str, Callable[[Problem], object]] = {
        "forward": Problem.forward,
        "gradient": Problem.gradient,
        "PyHessian": lambda problem: pyhessian(largest(problem), 1e-2),
        "PyHessian, layers only": lambda problem: pyhessian(largest(problem, True), 1e-2),
        "hessian-eigenthings, exact": lambda problem: eigenthings(largest(problem), "autograd", 4),
        "hessian-eigenthings, differences": lambda problem: eigenthings(
            largest(problem), "finite_difference", 4
        ),
        "curvlinops + eigsh": lambda problem: curvlinops(largest(problem), 1e-1, 7),
        "naive": lambda problem: naive(largest(problem), 1e-1),
    }
    return works[name]


#: What is measured, the yardstick first.
WORKS = (
    *("gradient", "forward", *ACCURACIES, "PyHessian", "PyHessian, layers only"),
    *("hessian-eigenthings, exact", "hessian-eigenthings, differences", "curvlinops + eigsh", "naive"),
)


def peak_here(size: Size, cache_folder: Path, name: str) -> int:
    """Do one piece of work and read the growth of this process's peak memory; meant for a fresh process.

    Args:
        size: the model; its last checkpoint is used.
        cache_folder: where it was trained.
        name: one of `WORKS`.

    Returns:
        Bytes above what the process held before, a first gradient of one row included.
    """
    problem = Problem.at(size, train(size, cache_folder), size.steps, ROWS)
    work = _worker(name)
    # What libraries load at first use (kernels, thread pools, the peers' own modules) is not the work's memory.
    one_row = replace(problem, tokens=problem.tokens[:1])
    one_row.gradient()
    work(replace(one_row, targets=one_row.targets[-2:]))
    gc.collect()
    # Give back what malloc kept, or the work would fill it without the process growing.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = _status("VmRSS")
    work(problem)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


@dataclass(frozen=True, slots=True)
class Memory:
    """Peaks and growth.

    Attributes:
        peaks: by work, bytes.
        checkpoints: how many were measured one after the other, each given the one before.
        slope: growth of resident memory over them, bytes a checkpoint (least squares).
        level: resident memory in the middle of them, bytes.
    """

    peaks: dict[str, Spread]
    checkpoints: int
    slope: float
    level: float


def memory(
    size: Size, cache_folder: Path, repeats: int, checkpoints: int, tell: Callable[[str], None]
) -> Memory:
    """Measure peaks in fresh processes, and growth in one.

    Args:
        size: the model.
        cache_folder: for its checkpoints.
        repeats: fresh processes a work.
        checkpoints: for the growth.
        tell: hears of progress.

    Returns:
        Bytes.
    """
    train(size, cache_folder)
    peaks: dict[str, Spread] = {}
    for name in WORKS:
        found = [_peak_of_fresh(size, cache_folder, name) for _ in range(repeats)]
        peaks[name] = Spread.of([float(one) for one in found])
        tell(f"peak memory, {name}: {peaks[name].median / 1e6:.0f} MB")
    command = (*_command(size, cache_folder), "--growth", str(checkpoints))
    resident = [float(word) for word in _run(command).split()]
    settled = resident[len(resident) // 10 :]  # the first few fill caches
    slope = float(np.polyfit(np.arange(len(settled)), settled, 1)[0])
    return Memory(peaks, checkpoints, slope, float(np.median(settled)))


def resident_over_checkpoints(size: Size, cache_folder: Path, checkpoints: int) -> list[int]:
    """Measure many checkpoints one after the other, each given the one before; meant for a fresh process.

    Returns:
        Resident bytes after each.
    """
    folder = train(size, cache_folder)
    steps = range(EVERY, size.steps + 1, EVERY)
    resident: list[int] = []
    known: Ours | None = None
    for number in range(checkpoints):
        problem = Problem.at(size, folder, steps[number % len(steps)], rows=1)
        known = ours(problem, "screen", known)
        resident.append(_status("VmRSS"))
    return resident


def _command(size: Size, cache_folder: Path) -> tuple[str, ...]:
    which = "large" if size.width > LENGTH else "small"
    return (sys.executable, "-m", "benchmarks.curvature", "--cache", str(cache_folder), "--size", which)


def _peak_of_fresh(size: Size, cache_folder: Path, name: str) -> int:
    return int(_run((*_command(size, cache_folder), "--peak", name)).split()[-1])


_run = partial(subprocess.check_output, text=True, cwd=Path(__file__).parents[2])
