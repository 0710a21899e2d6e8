"""The validation accuracy of a log: its best value, and whether it has turned."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import polars as pl

from hnf_offline.detect.measured import logged
from hnf_offline.detect.overfitting import AFTER, EVALUATIONS, SIGMAS, noise_of
from hnf_offline.quantities.loss_curve import accuracy_drop

_VALIDATION = re.compile(r"(?:^|_)(?:eval|val|valid|validation)(?:_|$)")
_ACCURACY = re.compile(r"(?:^|_)acc(?:uracy)?(?:_|$)")
#: Share of the best value that a drop must exceed, as well as its noise.
DROP = 0.01


@dataclass(frozen=True, slots=True)
class ValidationAccuracy:
    """What a log says of the validation accuracy.

    Attributes:
        column: the accuracy in the log.
        evaluations: number of them.
        best: the highest.
        best_step: its step.
        last: the last one.
        drop: the highest minus the median of the last three.
        turned: whether the last three all lie below the highest by 1 % of it and four times its own noise.
    """

    column: str
    evaluations: int
    best: float
    best_step: int
    last: float
    drop: float
    turned: bool


def validation_accuracy(log: pl.DataFrame) -> ValidationAccuracy | None:
    """Find where the validation accuracy is best, and whether it has turned since.

    Args:
        log: `step` and any column of a validation accuracy, known by its name; of several the one with most values.

    Returns:
        What it says, None for fewer than six evaluations.
    """
    found = []
    for name, kind in log.schema.items():
        plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        if kind.is_numeric() and _VALIDATION.search(plain) and _ACCURACY.search(plain):
            steps, values = logged(log, name)
            finite = np.isfinite(values)
            found.append((int(finite.sum()), name, steps[finite], values[finite]))
    if not found:
        return None
    number, column, steps, values = max(found, key=lambda one: one[0])
    if number < EVALUATIONS:
        return None
    best = int(np.argmax(values))
    least = max(DROP * abs(float(values[best])), SIGMAS * noise_of(values))
    turned = number - 1 - best >= AFTER and bool((values[best] - values[-AFTER:] > least).all())
    return ValidationAccuracy(
        column,
        number,
        float(values[best]),
        int(steps[best]),
        float(values[-1]),
        accuracy_drop(values),
        turned,
    )
