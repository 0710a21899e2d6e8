"""Runs side by side, each in a process of one thread."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from benchmarks.study.analysis import Analysed, analysed
from benchmarks.study.case import Case


def one_thread() -> None:
    """Let torch compute on one thread: more only wait for each other on models this small."""
    import torch

    torch.set_num_threads(1)


def all_analysed(chosen: Sequence[Case], cache: Path, jobs: int) -> Iterator[Analysed]:
    """Analyse runs in so many processes.

    Yields:
        Each run when it is done.
    """
    began = time.monotonic()
    with ProcessPoolExecutor(
        jobs, mp_context=multiprocessing.get_context("spawn"), initializer=one_thread
    ) as pool:
        waiting = [pool.submit(analysed, case, cache) for case in chosen]
        for number, done in enumerate(as_completed(waiting), 1):
            run = done.result()
            gone = time.monotonic() - began
            print(
                f"{number}/{len(chosen)}  {run.case.name}: {len(run.onsets)} onsets, {run.seconds:.0f} s; "
                f"{gone / 60:.0f} min gone",
                file=sys.stderr,
                flush=True,
            )
            yield run
