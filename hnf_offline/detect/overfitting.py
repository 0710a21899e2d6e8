"""The gap between validation and training loss, and where overfitting begins."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hnf_offline.detect.measured import logged
from hnf_offline.detect.trailing import SIGMA_PER_MAD, Floats
from hnf_offline.quantities.loss_curve import validation_gap

_VALIDATION = re.compile(r"(?:^|_)(?:eval|val|valid|validation)(?:_|$)")
_LOSS = re.compile(r"(?:^|_)loss(?:$|_)|^loss|loss$")
#: Evaluations in all, and after the best one, without which nothing is said.
EVALUATIONS, AFTER = 6, 3
#: The validation loss rises by this share of its level and so many sigmas of its own noise ...
RISE, SIGMAS = 0.01, 4.0


@dataclass(frozen=True, slots=True)
class ValidationGap:
    """Validation loss minus training loss, and overfitting.

    Attributes:
        column: the validation loss in the log.
        evaluations: number of them.
        first: gap at the first evaluation.
        last: gap at the last one.
        best_step: step of the lowest validation loss.
        best: that loss.
        onset: where overfitting begins: `best_step`, None where it does not.
        rise: validation loss at the end minus its lowest.
        growing: whether the gap still grew over the last evaluations; None without overfitting.
    """

    column: str
    evaluations: int
    first: float
    last: float
    best_step: int
    best: float
    onset: int | None
    rise: float
    growing: bool | None


def validation_gaps(log: pl.DataFrame) -> ValidationGap | None:
    """Compare the validation loss with the training loss.

    Overfitting is told where the last three evaluations all lie above the lowest one by more than 1 % of it and
    four times the evaluations' own noise, while the training loss fell further meanwhile: a loss that rises in both
    is a divergence.

    Args:
        log: `step`, `loss` and any column of a validation loss, known by its name.

    Returns:
        The gap, None without six finite evaluations beside a training loss.
    """
    column = _column(log)
    if column is None:
        return None
    at, validation = logged(log, column)
    steps, loss = logged(log, "loss")
    finite, usable = np.isfinite(loss), np.isfinite(validation)
    steps, loss, at, validation = steps[finite], loss[finite], at[usable], validation[usable]
    if at.size < EVALUATIONS or steps.size < EVALUATIONS:
        return None
    train = _level(at, steps, loss)
    known = np.isfinite(train)
    at, validation, train = at[known], validation[known], train[known]
    if at.size < EVALUATIONS:
        return None
    gap = validation_gap(validation, train)
    best = int(np.argmin(validation))
    least = max(RISE * abs(float(validation[best])), SIGMAS * noise_of(validation))
    rose = at.size - 1 - best >= AFTER and bool((validation[-AFTER:] - validation[best] > least).all())
    overfits = rose and bool(np.median(train[-AFTER:]) < train[best])
    middle = (best + at.size) // 2
    return ValidationGap(
        column=column,
        evaluations=int(at.size),
        first=float(gap[0]),
        last=float(gap[-1]),
        best_step=int(at[best]),
        best=float(validation[best]),
        onset=int(at[best]) if overfits else None,
        rise=float(validation[-1] - validation[best]),
        growing=bool(np.median(gap[-AFTER:]) > gap[middle]) if overfits else None,
    )


def _column(log: pl.DataFrame) -> str | None:
    # The validation loss with the most values.
    found = []
    for name, kind in log.schema.items():
        plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        if kind.is_numeric() and name != "loss" and _VALIDATION.search(plain) and _LOSS.search(plain):
            found.append((log.height - log[name].null_count(), name))
    return max(found, key=lambda one: one[0])[1] if found else None


def _level(at: NDArray[np.int64], steps: NDArray[np.int64], loss: Floats) -> Floats:
    # Mean training loss from the evaluation before, exclusive, to this one.
    ends = np.searchsorted(steps, at, side="right")
    begins = np.append(np.searchsorted(steps, at[0] - (at[1] - at[0]), side="right"), ends[:-1])
    sums = np.append(0.0, np.cumsum(loss))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((sums[ends] - sums[begins]) / (ends - begins))


def noise_of(values: Floats) -> float:
    """Estimate the noise of one evaluation from second differences, which a smooth curve leaves small.

    Their variance is six times that of one value.

    Returns:
        A robust standard deviation.
    """
    second = np.diff(values, 2)
    return SIGMA_PER_MAD * float(np.median(np.abs(second))) / math.sqrt(6)
