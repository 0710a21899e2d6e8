"""When memory runs out: half as many rows at a time, after everything of the try that failed has been let go."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from hnf_offline.errors import InputError
from hnf_offline.profile.memory import MemoryPlan

Result = TypeVar("Result")

#: What says so in words: torch's allocators on the CPU (c10/core/impl/alloc_cpu.cpp) and on MPS, the CUDA driver,
#: and libraries that ask for memory of their own.
_WORDS = (
    "not enough memory",
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out, on whatever device.

    Returns:
        True for torch's and Python's own, and for those that say so in words.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def halving(
    work: Callable[[MemoryPlan], Result],
    memory: MemoryPlan,
    path: Path,
    restore: Callable[[], None] | None = None,
) -> tuple[Result, MemoryPlan]:
    """Do some work; where memory runs out, again with half the rows, and so on down to one.

    Args:
        work: what is to be done, under a plan.
        memory: the plan to begin with.
        path: the checkpoint, for error messages.
        restore: undoes what a try that failed may have left half done, before the next one.

    Returns:
        What the work gave, and the plan under which it did.

    Raises:
        InputError: if not even one row fits.
    """
    while True:
        try:
            return work(memory), memory
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            let_go(error)
            if memory.rows == 1:
                raise InputError(
                    "one row does not fit into the memory of the device",
                    path=path,
                    remedy="use --device cpu, or shorter rows through --replay",
                ) from None
        # Only here, where the error is gone, is nothing left that holds what was computed.
        gc.collect()
        torch.cuda.empty_cache()
        memory = replace(memory, rows=memory.rows // 2, keep_graphs=False)
        if restore is not None:
            restore()


def let_go(error: BaseException | None) -> None:
    """Drop the local variables of all frames that an error and its causes passed: graphs hang on them.

    Args:
        error: the error; the frame that handles it keeps its own.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
