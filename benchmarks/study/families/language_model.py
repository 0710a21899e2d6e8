"""I: a language model without norms whose learning rate is at or past what it bears."""

from __future__ import annotations

from benchmarks.study.case import Case, Family, Text, Update
from hnf_offline.run.model.gpt import GPTConfig

TASK = Text(vocabulary=32, length=48)
MODEL = GPTConfig(32, TASK.length, 3, 4, 48, norm="none", bias=False, tied=False)


def cases(seed: int) -> tuple[Case, ...]:
    """One rate that is borne, two that are not.

    Returns:
        Three runs.
    """
    return tuple(
        Case(
            "I",
            f"lr{rate:g}-b{beta2:g}",
            seed,
            MODEL,
            TASK,
            Update("Adam", rate, beta2=beta2),
            steps=300,
            batch=8,
            first=20,
        )
        for rate, beta2 in ((1.5e-2, 0.95), (2e-2, 0.999), (3e-2, 0.999))
    )


FAMILY = Family(
    "I",
    "language model without norms",
    "diverges at 2e-2 and above, within 66 to 294 steps, not at 1.5e-2; AUROC(16) about .96, leads of 2 to 11 steps, "
    "single crossings often false",
    (0, 1, 2, 3, 4, 5),
    cases,
)
