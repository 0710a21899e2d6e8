"""F: the learning rate of a stable language model is raised at once."""

from __future__ import annotations

from benchmarks.study.case import Case, Family, Text, Update
from hnf_offline.run.model.gpt import GPTConfig

TASK = Text(vocabulary=32, length=24)
RATE, AT, STEPS = 2e-3, 200, 300


def model(norm: str) -> GPTConfig:
    """Give the small language model that bad batches are tried on as well.

    Returns:
        Its shape.
    """
    return GPTConfig(32, TASK.length, 2, 4, 32, norm=norm, bias=False, tied=False)  # type: ignore[arg-type]


def cases(seed: int) -> tuple[Case, ...]:
    """Four factors, with norms and without.

    Returns:
        Eight runs.
    """
    return tuple(
        Case(
            "F",
            f"x{factor}-{norm}",
            seed,
            model(norm),
            TASK,
            Update("Adam", RATE, raised_at=AT, raised_by=factor),
            steps=STEPS,
            batch=12,
        )
        for factor in (3, 5, 10, 20)
        for norm in ("none", "pre")
    )


FAMILY = Family(
    "F",
    "learning rate raised at once",
    "fails where the factor is past the headroom 1/S that was known before; leads of 2 to 7 steps only",
    (0, 1),
    cases,
)
