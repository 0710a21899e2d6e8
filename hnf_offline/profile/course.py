"""What follows from the values of many checkpoints: evaluated over the joined table, and never ahead of a checkpoint.

Neither a shard nor its key knows of it: a value here depends on the checkpoints before it, which may be measured later
or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hnf_offline.quantities.gradient_course import FEWEST_PREDICTED, PREDICTED
from hnf_offline.quantities.registry import computable
from hnf_offline.table import Row, of_checkpoints, sort, table

Floats = NDArray[np.float64]

#: Quantity of the table -> the name under which it is offered.
_MEASURED = "update.measured_change"
_PREDICTIONS = {
    "update.first_order_change": "first_order_changes",
    "update.predicted_change": "second_order_changes",
}
#: Draws of the checkpoints for an error bar, and the share of them that it holds.
DRAWS, COVERAGE = 400, (0.025, 0.975)
#: Share of the variation of measured changes that may be rounding.
ROUNDED = 0.1


def with_course(profile: pl.DataFrame) -> pl.DataFrame:
    """Add what follows from many checkpoints to a profile.

    Args:
        profile: the long table of all checkpoints, without such rows.

    Returns:
        The table with them.
    """
    rows = predictiveness_rows(profile)
    return sort(pl.concat([profile, table(rows)])) if rows else profile


def predictiveness_rows(profile: pl.DataFrame) -> list[Row]:
    """Hold predicted changes of the loss against measured ones, over a trailing window at every checkpoint.

    Args:
        profile: a long table with the family `update`.

    Returns:
        Rows of the whole model from the eighth checkpoint on whose update is known; none where its loss is not finite,
        or where the changes are hardly more than rounding.
    """
    whole = of_checkpoints(profile).filter(pl.col("layer") == "")
    measured = _of(whole, _MEASURED)
    rows: list[Row] = []
    for quantity, offered in _PREDICTIONS.items():
        pairs = _of(whole, quantity).join(measured, on="step", suffix="_measured").sort("step")
        pairs = pairs.filter(pl.col("value").is_finite() & pl.col("value_measured").is_finite())
        steps = pairs["step"].to_list()
        predicted, found, blur = (
            pairs[name].to_numpy() for name in ("value", "value_measured", "blur_measured")
        )
        for entry in computable(frozenset({offered, "measured_changes"}), "stability"):
            for last in range(FEWEST_PREDICTED - 1, len(steps)):
                window = slice(max(0, last + 1 - PREDICTED), last + 1)
                if not _above_rounding(found[window], blur[window]):
                    continue
                value, low, high = banded(entry.function, predicted[window], found[window])
                if math.isfinite(value):
                    count, first = len(steps[window]), steps[window][0]
                    name = f"{count} checkpoints, steps {first} to {steps[last]}"
                    rows.append(Row(steps[last], "", "model", -1, entry.name, value, low, high, batch=name))
    return rows


def banded(
    formula: Callable[[Floats, Floats], float], predicted: Floats, measured: Floats
) -> tuple[float, float, float]:
    """Evaluate a formula of pairs, and again with the pairs drawn anew.

    Returns:
        Value, and lower and upper end of its 95 % bootstrap interval.
    """
    value = formula(predicted, measured)
    drawn = np.random.default_rng(0).integers(len(measured), size=(DRAWS, len(measured)))
    others = np.array([formula(predicted[each], measured[each]) for each in drawn])
    others = others[np.isfinite(others)]
    if not others.size:
        return value, -math.inf, 1.0
    low, high = np.quantile(others, COVERAGE)
    return value, min(value, float(low)), max(value, float(high))


def _of(whole: pl.DataFrame, quantity: str) -> pl.DataFrame:
    half = ((pl.col("high") - pl.col("low")) / 2).fill_null(0.0).alias("blur")
    return (
        whole
        .filter(pl.col("quantity") == quantity)
        .select("step", "value", half)
        .unique("step", keep="first")
    )


def _above_rounding(measured: Floats, blur: Floats) -> bool:
    """Say whether loss changes vary by more than the rounding of the losses they are differences of."""
    spread = float(((measured - measured.mean()) ** 2).sum())
    return float((blur**2).sum()) <= ROUNDED * spread
