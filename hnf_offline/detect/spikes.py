"""Loss spikes: rows that a rule flags, joined into episodes with an onset, a peak, an end and a kind."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hnf_offline.detect.spike_rules import RISE, RULES, SPIKE_RULES, Flagged
from hnf_offline.detect.trailing import Floats, sorted_median
from hnf_offline.errors import UsageError
from hnf_offline.findings import Spike

Steps = NDArray[np.int64]

__all__ = ["SPIKE_RULES", "find_spikes"]

BACK_ROWS = 3  # rows in the band before a spike counts as over
AGAIN_ROWS = 10  # a new flag this soon after the end is an aftershock of the same spike
STEPS_PER_ROW = 2  # in a sparse log rows are far apart: so many steps a row of the two limits at most
LEVEL_ROWS = 10  # rows of the level before and after
RESUME_STEPS = 3
DIVERGED_ROWS = 5  # a divergence stays up at least this long
DIVERGED_RATIO = 1.5
DIVERGED_NATS = 0.3
DIVERGED_PART = 0.1  # of where the loss began, where that is less


@dataclass(slots=True)
class Episode:
    """A spike in rows of the log: `start` up to but not including `end` (None: it never came back)."""

    start: int
    end: int | None
    before: float
    back: float
    nonfinite: int | None = None


def find_spikes(
    log: pl.DataFrame, *, rule: str = "robust", resume_steps: Sequence[int] = ()
) -> tuple[Spike, ...]:
    """Find the loss spikes of a log.

    Onsets are causal: cutting the log after an onset leaves it and all earlier ones as they are (of the rule
    "stable-adamw" only in logs of 10,000 rows and more). Peak, end, recovery and kind look at what followed.
    A loss of exactly 0.0 beside a gradient norm that is not finite counts as NaN: some trainers write it so.

    Args:
        log: columns `step` and `loss`, sorted by step; null is "not logged", NaN and infinity are findings.
        rule: a key of `SPIKE_RULES`.
        resume_steps: steps at which the run was resumed.

    Returns:
        The spikes in order of onset.

    Raises:
        UsageError: no rule of that name.
    """
    if rule not in RULES:
        raise UsageError(f"no spike rule is called {rule!r}", remedy=f"use one of {', '.join(RULES)}")
    steps, loss = loss_of(log)
    if loss.size == 0:
        return ()
    finite = np.flatnonzero(np.isfinite(loss))
    flagged = RULES[rule](loss[finite]) if finite.size else None
    found = _episodes(loss[finite], steps[finite], flagged) if flagged is not None else []
    for episode in found:
        episode.start = int(finite[episode.start])
        episode.end = None if episode.end is None else int(finite[episode.end])
    joined = _with_nonfinite(found, loss)
    scores = np.full(loss.size, np.nan)
    if flagged is not None:
        scores[finite] = flagged.z
    resumes = sorted(resume_steps)
    return tuple(
        _spike(
            number, episode, joined[number] if number < len(joined) else None, steps, loss, scores, resumes
        )
        for number, episode in enumerate(joined, start=1)
    )


def loss_of(log: pl.DataFrame) -> tuple[Steps, Floats]:
    """Select the loss of a log; a loss of exactly 0.0 beside a gradient norm that is not finite is NaN.

    Returns:
        Steps and losses of the rows that have one.
    """
    if log.is_empty() or "loss" not in log.columns:
        return np.empty(0, dtype=np.int64), np.empty(0)
    loss = pl.col("loss").cast(pl.Float64)
    if "grad_norm" in log.columns:  # some trainers write a loss that was NaN as 0.0
        hidden = (loss == 0) & ~pl.col("grad_norm").cast(pl.Float64).is_finite()
        loss = pl.when(hidden).then(float("nan")).otherwise(loss).alias("loss")
    rows = log.select(pl.col("step").cast(pl.Int64), loss).drop_nulls()
    return rows["step"].to_numpy(), rows["loss"].to_numpy()


def _episodes(loss: Floats, steps: Steps, flagged: Flagged) -> list[Episode]:
    """Join flagged rows of a finite loss into episodes.

    A flag that comes soon after the last one belongs to the same episode. In an episode that has not come
    back, a flag that stands out from everything before it and from the row before begins a new one.

    Returns:
        The episodes, in order.
    """
    episodes: list[Episode] = []
    last = -1
    for row in np.flatnonzero(flagged.high).tolist():
        current = episodes[-1] if episodes else None
        if current is not None:
            end = current.end
            # An aftershock is smaller than its shock: a larger one is a spike of its own.
            larger = end is not None and flagged.fresh[row] and loss[row] > loss[current.start : end].max()
            if end is not None and row >= end and _close(end, row, AGAIN_ROWS, steps) and not larger:
                current.end = _first_back(loss, row, current.back)
                last = row
                continue
            if (end is None or row < end) and (
                _close(last, row, flagged.merge, steps)
                or not flagged.fresh[row]
                or loss[row] - loss[row - 1] <= RISE * abs(loss[row - 1])
            ):
                last = row
                continue
            if end is None or row < end:
                current.end = _back_until(loss, current.start, row, current.back)
        episode = Episode(row, None, float(flagged.before[row]), float(flagged.back[row]))
        episode.end = _first_back(loss, row, episode.back)
        episodes.append(episode)
        last = row
    return episodes


def _close(earlier: int, later: int, rows: int, steps: Steps) -> bool:
    """Whether two rows are near in rows and in steps (neighbours always are).

    Returns:
        True where they belong to one spike.
    """
    few_steps = steps[later] - steps[earlier] <= STEPS_PER_ROW * rows
    return later - earlier <= 1 or bool(later - earlier <= rows and few_steps)


def _first_back(loss: Floats, row: int, level: float) -> int | None:
    """First row after `row` from which the loss stays at or below a level for three rows.

    Where the log ends earlier, the rows that are left decide.

    Returns:
        The row, None where the loss never comes back.
    """
    start, size = row + 1, 256
    while start < loss.size:
        stop = min(loss.size, start + size)
        ahead = np.append(loss[start : stop + BACK_ROWS], np.full(BACK_ROWS, -np.inf)) <= level
        held = ahead[: stop - start] & ahead[1 : stop - start + 1] & ahead[2 : stop - start + 2]
        if held.any():
            return start + int(held.argmax())
        start, size = stop, 4 * size
    return None


def _back_until(loss: Floats, row: int, following: int, level: float) -> int | None:
    """First row after `row` from which the loss stays at or below a level until the next spike, for two rows at least.

    Returns:
        The row, None where the next spike came first.
    """
    above = np.flatnonzero(loss[row:following] > level)
    back = row + int(above[-1]) + 1 if above.size else row + 1
    return back if following - back >= BACK_ROWS - 1 else None


def _with_nonfinite(found: list[Episode], loss: Floats) -> list[Episode]:
    """Add the stretches of NaN and infinite loss, and join them with the spikes that they end or begin.

    Returns:
        All episodes in order.
    """
    broken = np.flatnonzero(~np.isfinite(loss))
    if broken.size == 0:
        return found
    cuts = np.flatnonzero(np.diff(broken) > 1) + 1
    stretches = [(int(part[0]), int(part[-1]) + 1) for part in np.split(broken, cuts)]
    events = sorted(
        [(episode.start, 1, episode) for episode in found]
        + [(start, 0, _stretch(start, stop, loss)) for start, stop in stretches],
        key=lambda event: event[:2],
    )
    joined: list[Episode] = []
    for _, _, episode in events:
        current = joined[-1] if joined else None
        soon = current is not None and (current.end is None or episode.start < current.end + BACK_ROWS)
        if current is not None and soon and (episode.nonfinite is not None or current.nonfinite is not None):
            if current.nonfinite is None:
                current.nonfinite = episode.nonfinite
            if current.end is not None:
                current.end = None if episode.end is None else max(current.end, episode.end)
        else:
            joined.append(episode)
    return joined


def _stretch(start: int, stop: int, loss: Floats) -> Episode:
    """One stretch of non-finite loss; its level before is the median of the last finite rows.

    Returns:
        The episode; its end is the first row after it whose loss is finite and back at that level.
    """
    earlier = loss[max(0, start - 60) : start]
    earlier = earlier[np.isfinite(earlier)]
    before = float(np.median(earlier)) if earlier.size else float("nan")
    sigma = 1.4826 * float(np.median(np.abs(earlier - before))) if earlier.size else float("nan")
    back = before + max(sigma, 0.05 * abs(before)) if earlier.size else float("inf")
    return Episode(start, _first_back(loss, stop - 1, back), before, back, nonfinite=start)


def _spike(
    number: int,
    episode: Episode,
    following: Episode | None,
    steps: Steps,
    loss: Floats,
    scores: Floats,
    resumes: Sequence[int],
) -> Spike:
    """Turn an episode into the record that the report prints.

    Returns:
        The spike.
    """
    last_row = loss.size if following is None else following.start
    stop = last_row if episode.end is None else min(episode.end, last_row)
    inside = loss[episode.start : max(stop, episode.start + 1)]
    peak = episode.nonfinite if episode.nonfinite is not None else episode.start + int(np.argmax(inside))
    recovered = episode.end is not None
    if recovered:
        after = loss[stop : min(stop + LEVEL_ROWS, last_row)]
    else:
        after = loss[max(episode.start + 1, last_row - 5) : last_row]
    after = after[np.isfinite(after)]
    offset = float(np.median(after)) - episode.before if after.size and np.isfinite(episode.before) else None
    onset = int(steps[episode.start])
    earlier = bisect_right(resumes, onset)
    first_scores = scores[episode.start : episode.start + 5]
    first_scores = first_scores[np.isfinite(first_scores)]
    return Spike(
        id=number,
        onset=onset,
        peak=int(steps[peak]),
        end=int(steps[episode.end]) if episode.end is not None else None,
        loss_before=episode.before,
        loss_peak=float(loss[peak]),
        height=float(loss[peak]) - episode.before,
        z=float(first_scores.max()) if first_scores.size else float("nan"),
        kind=_kind(episode, following, loss),
        recovered=recovered,
        recovery_steps=int(steps[episode.end]) - onset if episode.end is not None else None,
        offset=offset,
        at_resume=earlier > 0 and onset - resumes[earlier - 1] <= RESUME_STEPS,
    )


def _kind(episode: Episode, following: Episode | None, loss: Floats) -> str:
    """Name the kind: non-finite, a divergence (the loss stays well above to the end of the log), or a spike.

    A loss that went up for good has spikes of its own up there; they do not make it come back.

    Returns:
        "nonfinite", "divergence" or "spike".
    """
    if episode.nonfinite is not None:
        return "nonfinite"
    tail = loss[max(episode.start, loss.size - DIVERGED_ROWS) :]
    if episode.end is not None or loss.size - episode.start < DIVERGED_ROWS:
        return "spike"
    level = float(sorted_median(tail[None, :])[0])
    high = episode.before + max(least_rise(loss), (DIVERGED_RATIO - 1) * abs(episode.before))
    came_down = following is not None and _first_back(loss, episode.start, high) is not None
    return "divergence" if level > high and not came_down else "spike"


def least_rise(loss: Floats) -> float:
    """Least rise of a loss that lasts which counts as a divergence: 0.3 nat, less where a loss is small from the start.

    A mean squared error that began at 0.05 and goes from 0.002 to 0.04 has diverged, although no nat is in sight.

    Returns:
        0.3, or a tenth of the median of the first ten finite losses where that is less.
    """
    first = loss[np.isfinite(loss)][:10]
    return min(DIVERGED_NATS, DIVERGED_PART * abs(float(np.median(first)))) if first.size else DIVERGED_NATS
