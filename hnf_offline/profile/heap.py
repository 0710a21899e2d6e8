"""The C library's heap: freed memory stays with the process, as the system clears every page that it gives out."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

#: Names of mallopt's parameters (glibc's malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: Blocks up to this size come from the heap, and twice as much may lie free at its end: where glibc's own rule ends,
#: once a block of this size was freed (mallopt(3), M_MMAP_THRESHOLD).
LARGEST_BLOCK = 32 << 20


@cache
def keep_freed_memory() -> bool:
    """Let the heap keep what was freed, so that tensors of a few megabytes do not come from the system each time.

    A profile makes thousands of them, and every new page is cleared by the system before anything is written to it.
    Once a process; nothing happens where the C library is another one.

    Returns:
        Whether the heap does.

    Source: glibc manual, "Malloc Tunable Parameters".
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        set_parameter = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False  # musl has none
    # Either one alone would end glibc's own adaptation of both.
    return bool(
        set_parameter(_MMAP_THRESHOLD, LARGEST_BLOCK) and set_parameter(_TRIM_THRESHOLD, 2 * LARGEST_BLOCK)
    )
