"""A: S falls after every spike and climbs back; full batch, Adam, a small MLP, slow second moment."""

from __future__ import annotations

from benchmarks.study.case import Addition, Case, Family, Update
from hnf_offline.run.model.gpt import GPTConfig

TASK = Addition(31, 0.6)
MODEL = GPTConfig(32, 3, 1, 4, 28, mlp_width=28, norm="none", bias=False, tied=False)


def cases(seed: int) -> tuple[Case, ...]:
    """Two learning rates, two second decays.

    Returns:
        Four runs.
    """
    return tuple(
        Case("A", f"lr{rate:g}-b{beta2:g}", seed, MODEL, TASK, Update("Adam", rate, beta2=beta2), steps=1200)
        for rate in (8e-3, 1e-2)
        for beta2 in (0.99, 0.995)
    )


FAMILY = Family(
    "A",
    "climb: full batch, Adam",
    "4 to 6 onsets a run; S and its forecast lead by 25 to 40 steps at AUROC(16) .85 to .9, precision .5 to .7 where "
    "chance has .4 to .5",
    (0, 1, 2, 3),
    cases,
)
