"""Memory that was freed stays with the process: the same blocks taken again touch no new page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hnf_offline.profile import heap

#: Alone in a process, as what has been freed in it before decides what glibc does by itself.
_COUNT = """
import ctypes
import importlib.util
import resource
import sys

if sys.argv[1] == "keep":
    specification = importlib.util.spec_from_file_location("heap", sys.argv[2])
    heap = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(heap)
    assert heap.keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
library.free.argtypes, library.free.restype = [ctypes.c_void_p], None


def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [library.malloc(4 << 20) for _ in range(8)]
    for block in blocks:
        ctypes.memset(block, 1, 4 << 20)
    for block in blocks:
        library.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


print(min(faults() for _ in range(8)))
"""


def _faults(how: str) -> int:
    """New pages that eight blocks of 4 MiB took which had been there and gone before, in the best of some rounds."""
    command = [sys.executable, "-c", _COUNT, how, str(Path(heap.__file__))]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not heap.keep_freed_memory(), reason="not the GNU C library")
def test_blocks_taken_again_take_no_new_pages() -> None:
    assert _faults("keep") < 100 < 5000 < _faults("leave")
