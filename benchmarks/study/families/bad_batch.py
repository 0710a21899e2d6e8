"""G: batches with labels or text drawn at random, in a healthy language model."""

from __future__ import annotations

from benchmarks.study.case import Case, Family, Update
from benchmarks.study.families.jump import RATE, STEPS, TASK, model

AT = (150, 210, 211, 260)


def cases(seed: int) -> tuple[Case, ...]:
    """Random labels, and random text.

    Returns:
        Two runs.
    """
    update = Update("Adam", RATE)
    return (
        Case("G", "labels", seed, model("pre"), TASK, update, steps=STEPS, batch=12, bad_labels=AT),
        Case("G", "text", seed, model("pre"), TASK, update, steps=STEPS, batch=12, bad_text=AT),
    )


FAMILY = Family(
    "G",
    "bad batches",
    "no precursor: recall 0 for every rule, and no false alarm of S",
    (0, 1, 2),
    cases,
)
