"""H: the hovering model under ever more minibatch noise."""

from __future__ import annotations

from benchmarks.study.case import Case, Family, Update
from benchmarks.study.families.climb import TASK
from benchmarks.study.families.hover import MODEL


def cases(seed: int) -> tuple[Case, ...]:
    """Three batch sizes and all rows, two second decays.

    Returns:
        Eight runs.
    """
    return tuple(
        Case(
            "H",
            f"batch{batch or 'all'}-b{beta2:g}",
            seed,
            MODEL,
            TASK,
            Update("Adam", 5e-3, beta2=beta2),
            steps=1000,
            batch=batch,
        )
        for batch in (96, 192, 512, None)
        for beta2 in (0.95, 0.98)
    )


FAMILY = Family(
    "H",
    "minibatch noise",
    "S levels off below 1, the lower the smaller the batch: recall 0 to .4",
    (0, 1),
    cases,
)
