"""Stretches of a log in which the loss or the gradient norm is NaN or infinite."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from hnf_offline.detect.spikes import loss_of
from hnf_offline.detect.trailing import Flags
from hnf_offline.findings import LogEvent

MOST = 20  # stretches told one by one; the rest are summed up
SUSTAINED_ROWS, SHARE = 3, 0.01


def nonfinite_loss(log: pl.DataFrame) -> Iterator[LogEvent]:
    """Stretches of NaN or infinite loss; a loss of 0.0 beside a broken gradient norm is a hidden NaN.

    Yields:
        Kind "nonfinite-loss", one a stretch; beyond twenty one for all the rest.
    """
    steps, loss = loss_of(log)
    shown = stretches(~np.isfinite(loss))
    hidden = _hidden(log) if shown else set()
    for start, stop in shown[:MOST]:
        values = loss[start:stop]
        name = "NaN" if np.isnan(values).any() else f"{values[0]:g}"
        rows = f"{stop - start} row{'s' if stop - start > 1 else ''}"
        evidence = f"loss is {name} in {rows} of steps {steps[start]} to {steps[stop - 1]}"
        if hidden.issuperset(steps[start:stop].tolist()):
            evidence += "; logged as 0.0 beside a gradient norm that is not finite"
        evidence += "." if stop < loss.size else "; the log ends so."
        yield LogEvent("nonfinite-loss", "danger", int(steps[start]), int(steps[stop - 1]), evidence)
    if len(shown) > MOST:
        first, last = int(steps[shown[MOST][0]]), int(steps[shown[-1][1] - 1])
        count = sum(stop - start for start, stop in shown[MOST:])
        evidence = f"loss is not finite in {len(shown) - MOST} more stretches, {count} rows in all."
        yield LogEvent("nonfinite-loss", "danger", first, last, evidence)


def nonfinite_gradients(log: pl.DataFrame) -> Iterator[LogEvent]:
    """Gradient norms that are NaN or infinite although the loss is finite.

    Where a loss scale is logged, single ones are how mixed precision finds its scale. A warning needs three rows
    in a row and one row in a hundred, and no loss scale.

    Yields:
        Kind "nonfinite-gradient", at most one for the whole log.
    """
    if "grad_norm" not in log.columns:
        return
    norms = log.select(pl.col("step").cast(pl.Int64), pl.col("grad_norm").cast(pl.Float64)).drop_nulls()
    norms = norms.filter(~pl.col("grad_norm").is_finite())
    if norms.is_empty():
        return
    steps, loss = loss_of(log)
    finite = np.isfinite(loss)
    broken = np.isin(steps, norms["step"].to_numpy()) & finite
    count = int(broken.sum())
    if not count:
        return
    runs = stretches(broken)
    longest = max(stop - start for start, stop in runs)
    scaled = "loss_scale" in log.columns and log["loss_scale"].null_count() < log.height
    severe = longest >= SUSTAINED_ROWS and count >= SHARE * finite.sum() and not scaled
    evidence = (
        f"the gradient norm is not finite in {count} rows whose loss is finite, {longest} in a row at most"
    )
    evidence += "; a loss scale is logged, so these may be overflows that were skipped." if scaled else "."
    first, last = int(steps[runs[0][0]]), int(steps[runs[-1][1] - 1])
    yield LogEvent("nonfinite-gradient", "warning" if severe else "info", first, last, evidence)


def stretches(flags: Flags) -> list[tuple[int, int]]:
    """Find the runs of True.

    Returns:
        First row and the row after the last, of each.
    """
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _hidden(log: pl.DataFrame) -> set[int]:
    # Steps whose loss was written as 0.0 though it was NaN.
    if "grad_norm" not in log.columns:
        return set()
    zero = (pl.col("loss").cast(pl.Float64) == 0) & ~pl.col("grad_norm").cast(pl.Float64).is_finite()
    return set(log.filter(zero)["step"].cast(pl.Int64).to_list())
