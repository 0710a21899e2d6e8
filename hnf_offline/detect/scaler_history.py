"""Mixed precision as logged: bands of the gradient norm, the loss scale's history, and other scaler settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hnf_offline.detect.loss_scale import skips
from hnf_offline.detect.measured import logged
from hnf_offline.detect.trailing import Floats
from hnf_offline.quantities.loss_scaler import (
    HALF_OVERFLOW,
    gradient_norm_bands,
    simulated_skips,
    skipped_share,
)


@dataclass(frozen=True, slots=True)
class Scaling:
    """Settings of a loss scaler: first scale, growth, and the clean updates before it grows."""

    initial: float
    growth: float
    interval: int


#: Torch's own, and those that the source document blames and recommends.
COMPARED = (Scaling(65536.0, 2.0, 2000), Scaling(65536.0, 2.0, 100), Scaling(1024.0, 1.5, 200))
_LARGEST_GRADIENT = re.compile(
    r"(?:^|_)(?:(?:grad|gradient)s?_(?:abs_)?(?:max|absmax|inf_norm|linf)|(?:max|absmax)_(?:abs_)?(?:grad|gradient)s?)$"
)
#: Share of the rows that must be one step apart, for each update to be known.
DENSE = 0.95


def mixed_precision(log: pl.DataFrame, settings: Sequence[Scaling] = ()) -> dict[str, Any]:
    """Describe gradient norms and loss scaling of a log.

    Args:
        log: `step` and, where logged, `grad_norm`, `loss_scale`, `skipped_steps` and the largest gradient.
        settings: loss scalers to try beside `COMPARED`.

    Returns:
        Keys "bands", "scale" and "skipped", each only where it was logged, and then "simulated" (one row a setting)
        or "not_simulated": the reason.
    """
    told: dict[str, Any] = {}
    _, norms = logged(log, "grad_norm")
    if norms.size:
        told["bands"] = gradient_norm_bands(norms)
    steps, scale = logged(log, "loss_scale")
    usable = np.isfinite(scale) & (scale > 0)
    if usable.any():
        told["scale"] = _history(steps[usable], scale[usable])
    at, skipped = skips(log)
    if "scale" in told or skipped.any():
        told["skipped"] = _skipped(at, skipped)
    largest = _largest_gradient(log)
    if largest is None and not _scaled(told):
        return told
    limits = _limits(log, largest)
    if isinstance(limits, str):
        return told | {"not_simulated": limits}
    return told | {
        "simulated": [_simulated(one, *limits) for one in dict.fromkeys((*COMPARED, *settings))],
        "from": "loss scale and overflows" if largest is None else largest,
    }


def _history(steps: NDArray[np.int64], scale: Floats) -> dict[str, Any]:
    change = np.diff(scale)
    lowest = int(np.argmin(scale))
    return {
        "first": float(scale[0]),
        "last": float(scale[-1]),
        "lowest": float(scale[lowest]),
        "lowest_step": int(steps[lowest]),
        "highest": float(scale.max()),
        "falls": int((change < 0).sum()),
        "rises": int((change > 0).sum()),
    }


def _skipped(steps: NDArray[np.int64], skipped: Floats) -> dict[str, Any] | None:
    if not steps.size:
        return None
    covered = np.diff(steps, prepend=steps[0] - 1).astype(np.float64)
    start = int(np.argmin(skipped > 0)) if (skipped == 0).any() else skipped.size
    rest = skipped_share(skipped[start:], covered[start:])
    return {
        "updates": float(skipped.sum()),
        "at_the_start": float(skipped[:start].sum()),
        "share_after_it": rest if np.isfinite(rest) else None,
    }


def _scaled(told: Mapping[str, Any]) -> bool:
    # A scale that stands at 1 is no loss scaling: bfloat16 and float32 runs log it so.
    return "scale" in told and not (told["scale"]["highest"] <= 1 and not told["scale"]["falls"])


def _largest_gradient(log: pl.DataFrame) -> str | None:
    for name, kind in log.schema.items():
        plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        if kind.is_numeric() and _LARGEST_GRADIENT.search(plain) and log[name].null_count() < log.height:
            return name
    return None


def _limits(log: pl.DataFrame, largest: str | None) -> tuple[Floats, Floats] | str:
    """The scale from which on each update overflows: at least the first, at most the second.

    From the largest gradient both are 65520 / max|g|. From scales and overflows: an update that overflowed does
    so at every higher scale, one that did not does not at any lower one.

    Returns:
        The bounds of each step, or the reason why there are none.
    """
    if largest is not None:
        steps, gradient = logged(log, largest)
        if not _dense(steps):
            return f"{largest} is not logged at every step"
        with np.errstate(divide="ignore"):
            limit = np.where(np.isfinite(gradient), HALF_OVERFLOW / np.abs(gradient), 0.0)
        return limit, limit
    steps, scale = logged(log, "loss_scale")
    if not _dense(steps) or not (np.isfinite(scale) & (scale > 0)).all():
        return "the loss scale is not logged at every step"
    at, skipped = skips(log)
    overflowed = np.isin(steps, at[skipped > 0])
    lowest, highest = _tried(scale, overflowed)
    known_overflow = np.where(overflowed, highest, np.inf)
    known_clean = np.where(overflowed, 0.0, lowest)
    return np.nextafter(known_clean, np.inf) * (known_clean > 0), known_overflow


def _tried(scale: Floats, overflowed: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Bounds of the scale that each update was tried at: a row may give the one before or after its update.

    The falls tell which: in the row of an overflow the scale was logged after the update, in the next row before.

    Returns:
        The lowest and the highest it can have been, equal where the falls decide.
    """
    before = np.append(scale[0], scale[:-1])
    falls = scale < before
    after_update = int((overflowed & falls).sum())
    before_update = int((overflowed[:-1] & falls[1:]).sum())
    if before_update > after_update:
        return scale, scale
    if after_update > before_update:
        return before, before
    return np.minimum(scale, before), np.maximum(scale, before)


def _dense(steps: NDArray[np.int64]) -> bool:
    return steps.size >= 20 and float(np.mean(np.diff(steps) == 1)) >= DENSE


def _simulated(settings: Scaling, lowest_limit: Floats, highest_limit: Floats) -> dict[str, Any]:
    """Updates skipped under other settings, read in two ways where the log does not say what would overflow.

    Returns:
        The settings, the updates, and skipped updates and last scale if what is not known is clean, and if it
        overflows.
    """
    clean, clean_scales = simulated_skips(highest_limit, settings.initial, settings.growth, settings.interval)
    worst, worst_scales = simulated_skips(lowest_limit, settings.initial, settings.growth, settings.interval)
    return {
        **asdict(settings),
        "updates": int(clean.size),
        "skipped_if_unknown_is_clean": int(clean.sum()),
        "skipped_if_unknown_overflows": int(worst.sum()),
        "last_scale_if_unknown_is_clean": float(clean_scales[-1]),
        "last_scale_if_unknown_overflows": float(worst_scales[-1]),
    }
