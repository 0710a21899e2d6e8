"""C: S reaches 1 and stays there, and nothing happens: every alarm is false."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.study.case import Case, Family, Update
from benchmarks.study.families import climb, hover


def cases(seed: int) -> tuple[Case, ...]:
    """A low rate, a slow second moment, and a model with norms.

    Returns:
        Three runs.
    """
    normed = replace(hover.MODEL, norm="pre")
    settings = (
        ("low-rate", climb.MODEL, Update("Adam", 4e-4)),
        ("slow-moment", hover.MODEL, Update("Adam", 5e-3)),
        ("pre-norm", normed, Update("Adam", 1e-2, beta2=0.98)),
    )
    return tuple(
        Case("C", setting, seed, model, climb.TASK, update, steps=1200) for setting, model, update in settings
    )


FAMILY = Family(
    "C",
    "no spikes: at the edge of stability, healthy",
    "no onset; S reaches 1 and sits there, so that every alarm is false",
    (0, 1, 2, 3),
    cases,
)
