"""B: S stays about 1 and spikes come often; full batch, Adam, a wide MLP, fast second moment."""

from __future__ import annotations

from benchmarks.study.case import Case, Family, Update
from benchmarks.study.families.climb import TASK
from hnf_offline.run.model.gpt import GPTConfig

MODEL = GPTConfig(32, 3, 1, 4, 32, norm="none", bias=False, tied=False)


def cases(seed: int) -> tuple[Case, ...]:
    """Two learning rates, two second decays.

    Returns:
        Four runs.
    """
    return tuple(
        Case("B", f"lr{rate:g}-b{beta2:g}", seed, MODEL, TASK, Update("Adam", rate, beta2=beta2), steps=1300)
        for rate in (5e-3, 8e-3)
        for beta2 in (0.95, 0.98)
    )


FAMILY = Family(
    "B",
    "hover: full batch, Adam, fast second moment",
    "5 to 9 onsets a run; S > 1 has recall .8 at precision .57 where chance has .48: at the edge precision is the "
    "base rate",
    (0, 1, 2, 3),
    cases,
)
