"""Memory that was freed stays with the process: the same tensor made again touches no new page."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hnf_offline.profile.heap import keep_freed_memory

_COUNT = """
import resource
import sys

import torch

from hnf_offline.profile.heap import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else True


def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    several = [torch.ones(1 << 20) for _ in range(8)]
    del several
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


print(int(kept), min(faults() for _ in range(5)))
"""


def _faults(how: str) -> int:
    """New pages that eight tensors of 4 MiB took which had been there and gone before."""
    done = subprocess.run([sys.executable, "-c", _COUNT, how], capture_output=True, text=True, check=True)
    kept, faults = map(int, done.stdout.split())
    assert kept
    return faults


@pytest.mark.skipif(not keep_freed_memory(), reason="not the GNU C library")
def test_a_tensor_made_again_takes_no_new_pages() -> None:
    assert _faults("keep") < 1024 < _faults("leave")
