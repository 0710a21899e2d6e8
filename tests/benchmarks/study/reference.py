"""The same scores once more, step by step in plain loops: shares nothing with `hnf_offline.relate` or the study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import hypergeom

AFTERSHOCK = 40


@dataclass
class Tally:
    """Counts of one run."""

    spikes: int = 0
    alarms: int = 0
    announced: int = 0
    correct: int = 0
    chance_announced: float = 0.0
    chance_correct: float = 0.0


def first_of_each_cluster(onsets: Sequence[int]) -> list[int]:
    kept: list[int] = []
    for onset in sorted(onsets):
        if all(onset - earlier > AFTERSHOCK for earlier in kept[-1:]):
            kept.append(onset)
    return kept


def meaning(step: int, starts: Sequence[int], window: int, last: int) -> int | None:
    """What an alarm at a step says: the onset it announces, 0 if it is false, None if it cannot be judged."""
    if any(start <= step <= start + AFTERSHOCK for start in starts):
        return None
    for start in starts:
        if start > step:
            if start - step <= window:
                return start
            break
    return None if step > last - window else 0


def tally(
    alarms: Sequence[int], onsets: Sequence[int], possible: Sequence[int], window: int, first: int, last: int
) -> Tally:
    starts = [start for start in first_of_each_cluster(onsets) if start <= last]
    wanted = [start for start in starts if start > first]
    found = Tally(spikes=len(wanted))
    said = [meaning(step, starts, window, last) for step in sorted(set(alarms)) if first <= step <= last]
    said = [one for one in said if one is not None]
    could = [meaning(step, starts, window, last) for step in sorted(set(possible)) if first <= step <= last]
    could = [one for one in could if one is not None]
    found.alarms = len(said)
    found.correct = sum(one in wanted for one in said)
    found.announced = sum(start in said for start in wanted)
    draws = min(len(said), len(could))
    for start in wanted:
        found.chance_announced += 1 - float(hypergeom(len(could), could.count(start), draws).pmf(0))
    if could:
        found.chance_correct = len(said) * sum(one in wanted for one in could) / len(could)
    return found
