"""Memory over a long run: of a checkpoint little more than its rows of the table stays."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hnf_offline.profile import ProfileSettings, profile_run
from hnf_offline.profile.settings import Progress
from hnf_offline.run import open_run

#: What may stay of a checkpoint: its rows of the table, until the whole table is written.
KEPT_KB = 64.0
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_kb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1024


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="the system does not list its memory as a file"
)
@pytest.mark.parametrize("tier", ["gradient", "curvature"])
def test_the_memory_of_a_hundred_checkpoints_is_that_of_twenty(
    record_run: Callable[..., Path], tmp_path: Path, tier: str
) -> None:
    run = open_run(record_run(tmp_path / "long", every=1, steps=100))
    assert len(run.checkpoints) == 100
    measured: list[float] = []

    def note(progress: Progress) -> None:
        if not progress.part and progress.seconds:
            gc.collect()
            measured.append(resident_kb())

    settings = ProfileSettings(tier, rows=4, device="cpu", accuracy="screen")
    profile_run(run, settings, tmp_path / "out", on_progress=note)
    assert len(measured) == 100
    settled = measured[20:]
    fitted, covariance = np.polyfit(np.arange(len(settled)), settled, 1, cov=True)
    slope, error = float(fitted[0]), float(covariance[0, 0]) ** 0.5
    course = " -> ".join(f"{measured[place]:.0f}" for place in (0, 20, -1))
    print(f"{slope:.1f} +- {2 * error:.1f} kB a checkpoint, {course} kB")
    assert slope < KEPT_KB
