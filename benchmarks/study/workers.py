"""Runs side by side, each in a process of one thread."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

from benchmarks.study.analysis import Analysed, analysed
from benchmarks.study.case import Case
from benchmarks.study.injection import Injected
from benchmarks.study.intervention import Outcome, tried
from benchmarks.study.localisation import Named, asked

Declared = TypeVar("Declared", Case, Injected)
Result = TypeVar("Result")


def one_thread() -> None:
    """Let torch compute on one thread: more only wait for each other on models this small."""
    import torch

    torch.set_num_threads(1)


def all_analysed(chosen: Sequence[Case], cache: Path, jobs: int) -> Iterator[Analysed]:
    """Analyse runs in so many processes.

    Yields:
        Each run when it is done.
    """
    for case, run, gone in _side_by_side(analysed, chosen, cache, jobs):
        _tell(f"{case}: {len(run.onsets)} onsets, {run.seconds:.0f} s; {gone}")
        yield run


def all_tried(chosen: Sequence[Case], cache: Path, jobs: int) -> Iterator[list[Outcome]]:
    """Retrain runs under the policies of experiment 3, in so many processes.

    Yields:
        The outcomes of each run when it is done.
    """
    for case, outcomes, gone in _side_by_side(tried, chosen, cache, jobs):
        _tell(f"{case}: {', '.join(str(one.onsets) for one in outcomes)} onsets; {gone}")
        yield outcomes


def all_asked(chosen: Sequence[Injected], cache: Path, jobs: int) -> Iterator[list[Named]]:
    """Look for the faults of experiment 4, in so many processes.

    Yields:
        The answers about each run when it is done.
    """
    for run, named, gone in _side_by_side(asked, chosen, cache, jobs):
        _tell(f"{run}: {sum(one.right for one in named)} of {len(named)} answers right; {gone}")
        yield named


def _side_by_side(
    work: Callable[[Declared, Path], Result], chosen: Sequence[Declared], cache: Path, jobs: int
) -> Iterator[tuple[str, Result, str]]:
    began = time.monotonic()
    with ProcessPoolExecutor(
        jobs, mp_context=multiprocessing.get_context("spawn"), initializer=one_thread
    ) as pool:
        waiting = {pool.submit(work, case, cache): case for case in chosen}
        for number, done in enumerate(as_completed(waiting), 1):
            gone = (time.monotonic() - began) / 60
            yield f"{number}/{len(chosen)}  {waiting[done].name}", done.result(), f"{gone:.0f} min gone"


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
