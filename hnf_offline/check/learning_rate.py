"""The learning rate saved with the optimizer against the one that was logged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.check.registry import Check, Outcome
from hnf_offline.check.series import Portrait, Series, some
from hnf_offline.findings import Fault

if TYPE_CHECKING:
    import polars as pl

#: Trainers save the rate of this step or of the next, and log either.
_REACH = 2
_TOLERANCE = 0.01


def look(series: Series) -> Outcome:
    """Compare each optimizer's rates with those logged around its step.

    Returns:
        A warning for each checkpoint whose rates are all outside of them; a remark where all are off by one factor.
    """
    portraits = [one for one in series.portraits or () if one.optimizer and one.optimizer.learning_rates]
    lacking = len(series.portraits or ()) - len(portraits)
    skipped = f"{some(lacking, 'checkpoint')} save no learning rate" if lacking else ""
    log = series.run.log
    if not portraits:
        return Outcome((), "", skipped or "no tensor could be read")
    rows = None if log is None else log.rows.select("step", "learning_rate").drop_nulls()
    if rows is None or not rows.height:
        return Outcome((), "", "the log has no learning rates" if log is not None else "the run has no log")
    off, looked = [], 0
    for portrait in portraits:
        around = _logged(rows, portrait.step)
        if around is None:
            continue
        looked += 1
        low, high = around
        rates = portrait.optimizer.learning_rates if portrait.optimizer else ()
        if not any(low * (1 - _TOLERANCE) <= rate <= high * (1 + _TOLERANCE) for rate in rates):
            off.append((portrait, rates, low, high))
    factors = [rates[0] / high for _, rates, _, high in off if high > 0]
    if len(off) == looked > 2 and factors and max(factors) - min(factors) <= 0.05 * max(factors):
        evidence = (
            f"saved rates are {factors[0]:.3g} times the logged ones in all {some(looked, 'checkpoint')}"
        )
        fault = Fault(CHECK.name, "info", None, "", evidence, "know which of the two was applied")
        return Outcome((fault,), f"{some(looked, 'optimizer state')}", skipped)
    faults = tuple(_fault(series, *one) for one in off)
    return Outcome(faults, f"{some(looked, 'optimizer state')}" if looked else "", skipped)


def _logged(rows: pl.DataFrame, step: int) -> tuple[float, float] | None:
    # Lowest and highest rate logged around a step, at least the rows before and after it; None far from any.
    import polars as pl

    before = rows.filter(pl.col("step") <= step).tail(1)
    after = rows.filter(pl.col("step") > step).head(1)
    near = rows.filter((pl.col("step") - step).abs() <= _REACH)
    both = pl.concat([before, near, after])
    if not before.height or not both.height or (not after.height and before["step"][0] < step - _REACH):
        return None
    rates = [float(rate) for rate in both["learning_rate"]]
    if not after.height:
        rates.append(_continued(pl.concat([rows.tail(2), near]).sort("step")["learning_rate"].to_list()))
    return min(rates), max(rates)


def _continued(rates: list[float]) -> float:
    # The rate saved after the last logged step is that of a step nobody logged: a schedule that ends goes on to it
    # as it went before, down to 0.
    return max(0.0, 2 * rates[-1] - rates[0])


def _fault(series: Series, portrait: Portrait, rates: tuple[float, ...], low: float, high: float) -> Fault:
    files = portrait.checkpoint.optimizer_files
    where = series.relative(files[0]) if files else series.path_of(portrait.step)
    saved = ", ".join(f"{rate:.4g}" for rate in rates[:3])
    logged = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
    evidence = f"the optimizer has the learning rate {saved}, the log {logged} around this step"
    return Fault(CHECK.name, "warning", portrait.step, where, evidence, CHECK.remedy)


CHECK = Check(
    name="learning-rate",
    cost="weights",
    looks_for="a learning rate in the optimizer that was not logged around its step",
    matters="The stability ratio is the rate times a curvature: with a wrong rate it is wrong by the same factor.",
    remedy="the optimizer file is of another step or run, or the schedule was set anew at a resume",
    look=look,
)
