"""Alarm of a learning rate raised past the headroom that the last checkpoint had."""

from __future__ import annotations

import numpy as np
import polars as pl

from hnf_offline.detect.measured import logged, one
from hnf_offline.detect.rules import STUDIED, Rules
from hnf_offline.findings import Alarm

QUANTITY = "optimizer.headroom"


def headroom_alarms(profile: pl.DataFrame, log: pl.DataFrame, rules: Rules = STUDIED) -> tuple[Alarm, ...]:
    """Alarms of a learning rate above the largest stable one of the last checkpoint.

    With the weights and the optimizer state of checkpoint c fixed, S is proportional to the learning rate.
    So at each logged step t the ratio S(c) rate(t) / rate(c), c the last checkpoint before t, says whether
    the update t is still stable. The alarm comes when it exceeds `on` although S(c) did not, because the
    rate was raised in the log. rate(c) is the rate of the saved optimizer state, which is that of the next
    update; without one, the log's at step c.

    Args:
        profile: needs `hessian.stability_ratio` of the whole model.
        log: needs `learning_rate`.
        rules: the thresholds.

    Returns:
        One alarm a raise, known at the step that was logged with the higher rate.
    """
    ratio = one(profile, "hessian.stability_ratio")
    saved = one(profile, "optimizer.learning_rate")
    steps, rates = logged(log, "learning_rate")
    usable = np.isfinite(rates)
    steps, rates = steps[usable], rates[usable]
    if ratio.steps.size == 0 or steps.size == 0:
        return ()
    at_checkpoint = dict(zip(saved.steps.tolist(), saved.values.tolist(), strict=True))
    earlier = np.searchsorted(steps, ratio.steps, side="right") - 1
    from_log = np.where(earlier >= 0, rates[np.maximum(earlier, 0)], np.nan)
    own = np.array([at_checkpoint.get(int(c), rate) for c, rate in zip(ratio.steps, from_log, strict=True)])
    last = np.searchsorted(ratio.steps, steps, side="left") - 1
    known = last >= 0
    stable = np.where(known, ratio.values[np.maximum(last, 0)], np.nan)
    base = np.where(known, own[np.maximum(last, 0)], np.nan)
    logged_before = np.where(known, from_log[np.maximum(last, 0)], np.nan)
    rose = ~(rates <= rules.raise_ratio * logged_before)  # NaN: nothing was logged before the checkpoint
    with np.errstate(divide="ignore", invalid="ignore"):
        raised = rates / base
        projected = stable * raised
        over = (projected > rules.on) & (stable < rules.on) & (raised > rules.raise_ratio) & rose
        over &= (stable > 0) & (base > 0)
    begins = np.flatnonzero(over & ~np.concatenate([[False], over[:-1]]))
    return tuple(
        Alarm(
            step=int(steps[row]),
            known_at=int(steps[row]),
            quantity=QUANTITY,
            layer="",
            value=float(1 / projected[row]),
            threshold=1.0 / rules.on,
            rule="headroom",
            severity="danger",
            text=f"learning rate raised {raised[row]:.3g}x to {rates[row]:.2g} at step {steps[row]}; "
            f"headroom at {ratio.place(int(last[row]))} was {1 / stable[row]:.2g} "
            f"(largest stable rate {base[row] / stable[row]:.2g}).",
            action=f"Keep the learning rate below {base[row] / stable[row]:.2g} there.",
        )
        for row in begins
    )
