"""D: heavy-ball SGD from large weights: S climbs once and the run spikes or blows up."""

from __future__ import annotations

from benchmarks.study.case import Addition, Case, Family, Update
from hnf_offline.run.model.gpt import GPTConfig

TASK = Addition(11, 1.0)
MODEL = GPTConfig(12, 3, 1, 4, 16, norm="none", bias=False, tied=False, initial_std=0.2)


def cases(seed: int) -> tuple[Case, ...]:
    """Four learning rates.

    Returns:
        Four runs.
    """
    return tuple(
        Case("D", f"lr{rate:g}", seed, MODEL, TASK, Update("SGD", rate, warm_up=20), steps=1000, first=50)
        for rate in (0.08, 0.1, 0.12, 0.15)
    )


FAMILY = Family(
    "D",
    "SGD with momentum",
    "three of four runs spike or blow up; the forecast has recall near 1 at precision .86 and lead 27, chance .15; the "
    "gradient norm ranks as well, without a threshold that means anything",
    (0, 1, 2, 3, 4, 5),
    cases,
)
