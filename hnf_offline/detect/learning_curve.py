"""What the learning curve of a log says, as one mapping of plain values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hnf_offline.detect.components import loss_components
from hnf_offline.detect.explosion import largest_explosion
from hnf_offline.detect.measured import logged
from hnf_offline.detect.overfitting import validation_gaps
from hnf_offline.detect.power_law import PowerLaw, fit_power_law
from hnf_offline.detect.schedule import phases, schedule_effects
from hnf_offline.detect.trailing import Floats, trailing_median
from hnf_offline.detect.validation_accuracy import validation_accuracy
from hnf_offline.findings import Spike
from hnf_offline.quantities.loss_curve import (
    loss_deviation,
    loss_excess_kurtosis,
    loss_mean,
    loss_skewness,
    plateau_score,
    steps_to_target,
)

#: Rows of the last window, of the smoothed loss; a log with fewer than LEAST says nothing.
WINDOW, SMOOTH_ROWS, LEAST = 100, 20, 40
#: Without a target of the user's: the level after this share of the fall.
FALL = 0.9
MOST_EPOCHS, MOST_JUMPS, EPOCH_ROWS = 50, 20, 5
_TOKENS = re.compile(r"(?:^|_)(?:tokens_seen|num_tokens|n_tokens|total_tokens|tokens|num_input_tokens_seen)$")
_RATES = re.compile(r"(?:per|sec|_s$|second|throughput)")


def learning_curve(
    log: pl.DataFrame, spikes: Sequence[Spike] = (), target: float | None = None
) -> dict[str, Any]:
    """Describe the learning curve of a log.

    Args:
        log: `step`, `loss`, and where logged `learning_rate`, `epoch`, a validation loss and tokens.
        spikes: left out of everything but the explosion score.
        target: the loss to reach; None for the level after 90 % of the fall.

    Returns:
        Keys "window" (moments), "plateau", "explosion", "power_law" (or "no_power_law": the reason), "target",
        "validation", "accuracy", "components", "schedule", "epochs", "phases"; empty for fewer than forty finite
        losses. Every quantity that could not be computed is None or left out.
    """
    steps, loss = logged(log, "loss")
    finite = np.isfinite(loss)
    steps, loss = steps[finite], loss[finite]
    if steps.size < LEAST:
        return {}
    calm = _outside(steps, spikes)
    calm_steps, calm_loss = steps[calm], loss[calm]
    told: dict[str, Any] = {
        "explosion": largest_explosion(steps, loss),
        "components": loss_components(log),
    }
    if calm_steps.size >= LEAST:
        fit = fit_power_law(calm_steps, calm_loss)
        rates = _at(calm_steps, *logged(log, "learning_rate"))
        told |= {
            "window": _window(calm_steps, calm_loss),
            "plateau": _plateau(calm_loss),
            "power_law": None if isinstance(fit, str) else _told(fit, rates),
            "no_power_law": fit if isinstance(fit, str) else None,
            "target": _target(log, calm_steps, calm_loss, target),
            "schedule": [asdict(one) for one in schedule_effects(calm_steps, calm_loss, rates)][:MOST_JUMPS],
            "phases": [
                {"phase": one.name, **_stretch(calm_steps, calm_loss, one.first, one.last)}
                for one in phases(calm_steps, rates)
            ],
            "epochs": _epochs(log, calm_steps, calm_loss),
        }
    gap = validation_gaps(log)
    accuracy = validation_accuracy(log)
    return told | {
        "validation": None if gap is None else asdict(gap),
        "accuracy": None if accuracy is None else asdict(accuracy),
    }


def _outside(steps: NDArray[np.int64], spikes: Sequence[Spike]) -> NDArray[np.bool_]:
    keep = np.ones(steps.size, dtype=np.bool_)
    for spike in spikes:
        last = spike.peak if spike.end is None else spike.end - 1
        keep &= (steps < spike.onset) | (steps > last)
    return keep


def _at(steps: NDArray[np.int64], rate_steps: NDArray[np.int64], rates: Floats) -> Floats:
    values = dict(zip(rate_steps.tolist(), rates.tolist(), strict=True))
    return np.array([values.get(step, np.nan) for step in steps.tolist()])


def _window(steps: NDArray[np.int64], loss: Floats) -> dict[str, Any]:
    last = loss[-WINDOW:]
    return {
        "first": int(steps[-last.size]),
        "last": int(steps[-1]),
        "rows": int(last.size),
        "mean": loss_mean(last),
        "deviation": loss_deviation(last),
        "skewness": _or_none(loss_skewness(last)),
        "excess_kurtosis": _or_none(loss_excess_kurtosis(last)),
    }


def _plateau(loss: Floats) -> dict[str, Any]:
    width = min(WINDOW, loss.size // 2)
    before, last = loss[-2 * width : -width], loss[-width:]
    level = float(np.median(before))
    score, noise = plateau_score(last, level), plateau_score(before, level)
    return {"rows": width, "score": score, "noise": noise, "ratio": score / noise if noise > 0 else None}


def _told(fit: PowerLaw, rates: Floats) -> dict[str, Any]:
    known = rates[np.isfinite(rates)]
    # Of a rate that has decayed, more of the same schedule is not more of the same training.
    decayed = bool(known.size) and bool(known[-1] < 0.1 * known.max())
    return {**asdict(fit), "worth_continuing": fit.worth, "rate_decayed": decayed}


def _target(
    log: pl.DataFrame, steps: NDArray[np.int64], loss: Floats, target: float | None
) -> dict[str, Any] | None:
    smooth = trailing_median(np.append(loss, 0.0), SMOOTH_ROWS, SMOOTH_ROWS)[1:]
    began, lowest = float(np.median(loss[:5])), float(np.nanmin(smooth))
    chosen = target if target is not None else began - FALL * (began - lowest)
    if target is None and not began > lowest:
        return None
    step = steps_to_target(steps, smooth, chosen)
    return {"loss": chosen, "given": target is not None, "step": step, "tokens": _tokens(log, step)}


def _tokens(log: pl.DataFrame, step: int | None) -> float | None:
    # Only a column that counts up tells tokens seen; one that stays the same is a batch's.
    for name, kind in log.schema.items():
        plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        if step is None or not kind.is_numeric() or not _TOKENS.search(plain) or _RATES.search(plain):
            continue
        at, seen = logged(log, name)
        if at.size > 1 and bool((np.diff(seen) >= 0).all()) and seen[-1] > seen[0]:
            row = int(np.searchsorted(at, step, side="right")) - 1
            return float(seen[row]) if row >= 0 else None
    return None


def _epochs(log: pl.DataFrame, steps: NDArray[np.int64], loss: Floats) -> list[Mapping[str, Any]]:
    if "epoch" not in log.columns or not log.schema["epoch"].is_numeric():
        return []
    epoch = np.floor(_at(steps, *logged(log, "epoch")))
    numbers, rows = np.unique(epoch[np.isfinite(epoch)], return_counts=True)
    numbers = numbers[rows >= EPOCH_ROWS]  # the last step often opens an epoch of its own
    if numbers.size < 2:
        return []
    return [
        {"epoch": int(one), **_stretch(steps[epoch == one], loss[epoch == one])}
        for one in numbers[-MOST_EPOCHS:]
    ]


def _stretch(
    steps: NDArray[np.int64], loss: Floats, first: int | None = None, last: int | None = None
) -> dict[str, Any]:
    if first is not None and last is not None:
        inside = (steps >= first) & (steps <= last)
        steps, loss = steps[inside], loss[inside]
    slope = np.polyfit(steps - steps[0], loss, 1)[0] * 1000 if steps.size > 2 else None
    return {
        "first": int(steps[0]),
        "last": int(steps[-1]),
        "rows": int(steps.size),
        "mean": loss_mean(loss),
        "deviation": _or_none(loss_deviation(loss)),
        "change_per_1000_steps": None if slope is None else float(slope),
    }


def _or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None
