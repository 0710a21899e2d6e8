"""Runs side by side, each in a process of one thread."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

from benchmarks.study.case import Case
from benchmarks.study.injection import Injected

Declared = TypeVar("Declared", Case, Injected)
Result = TypeVar("Result")


def one_thread() -> None:
    """Let torch compute on one thread: more only wait for each other on models this small."""
    import torch

    torch.set_num_threads(1)


def side_by_side(
    work: Callable[[Declared, Path], Result],
    chosen: Sequence[Declared],
    cache: Path,
    jobs: int,
    said: Callable[[Result], str],
) -> Iterator[Result]:
    """Do the same with many runs, in so many processes, and tell of each.

    Args:
        work: what is done with a run and the cache.
        chosen: the runs.
        cache: where runs and results are kept.
        jobs: processes.
        said: one result in words.

    Yields:
        Each result when it is there.
    """
    began = time.monotonic()
    with ProcessPoolExecutor(
        jobs, mp_context=multiprocessing.get_context("spawn"), initializer=one_thread
    ) as pool:
        waiting = {pool.submit(work, case, cache): case for case in chosen}
        for number, done in enumerate(as_completed(waiting), 1):
            result = done.result()
            print(
                f"{number}/{len(chosen)}  {waiting[done].name}: {said(result)}; "
                f"{(time.monotonic() - began) / 60:.0f} min gone",
                file=sys.stderr,
                flush=True,
            )
            yield result
