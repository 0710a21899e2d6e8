"""The memory that measuring a checkpoint took, to hold a plan against."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from hnf_offline.profile.session import Session, bytes_of_parameters

_STATUS = Path("/proc/self/status")


class Peak:
    """Watches memory from now on: of a GPU what its allocator gave out, elsewhere what the process grew by.

    The growth is that of the largest moment of the process's life, so it is at most too large where something before
    took more, and it contains what libraries load when they are first used.
    """

    def __init__(self, session: Session | None) -> None:
        """Begin with the weights in the module.

        Args:
            session: the module and its device, None where there is none.
        """
        self._weights = 0 if session is None else bytes_of_parameters(session.module)
        self._cuda = None if session is None or session.device.type != "cuda" else session.device
        self._before = 0
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
        else:
            _forget_largest()
            self._before = _resident()

    @property
    def bytes(self) -> int:
        """The most that was held at once, weights included."""
        if self._cuda is not None:
            return int(torch.cuda.max_memory_allocated(self._cuda))
        return max(0, _largest() - self._before) + self._weights


def _resident() -> int:
    return _told("VmRSS") or _largest()


def _largest() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return _told("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _told(name: str) -> int:
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def _forget_largest() -> None:
    # Linux lets a process begin its high-water mark anew; elsewhere that of its whole life stays.
    try:
        with Path("/proc/self/clear_refs").open("w", encoding="utf-8") as file:
            file.write("5")
    except OSError:
        return
