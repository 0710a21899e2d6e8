"""Checkpoints that are not evenly spaced: the resolution of every lead is the widest gap before it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hnf_offline.check.registry import Check, Outcome
from hnf_offline.check.series import Series, some
from hnf_offline.findings import Fault

_MOST_TOLD = 4


def look(series: Series) -> Outcome:
    """Compare the gaps between checkpoints with the usual one; a step 0 that is missing is no fault.

    Returns:
        A remark where gaps differ.
    """
    steps = [checkpoint.step for checkpoint in series.run.checkpoints]
    # What could not be read is told elsewhere; its step was saved.
    steps = sorted({*steps, *series.unreadable})
    if len(steps) < 3:
        return Outcome((), "", "fewer than three checkpoints")
    gaps = [(after - before, before, after) for before, after in pairwise(steps)]
    usual, times = Counter(gap for gap, _, _ in gaps).most_common(1)[0]
    other = [(before, after) for gap, before, after in gaps if gap != usual]
    if not other:
        return Outcome((), f"{some(len(steps), 'checkpoint')}")
    if 2 * times > len(gaps):
        listed = ", ".join(f"{before} to {after}" for before, after in other[:_MOST_TOLD])
        more = f" and {len(other) - _MOST_TOLD} more" if len(other) > _MOST_TOLD else ""
        evidence = f"checkpoints are {usual} steps apart, but not from step {listed}{more}"
        step = other[0][1] if len(other) == 1 else None
    else:
        widest = max(gaps)
        evidence = (
            f"checkpoints are {min(gaps)[0]} to {widest[0]} steps apart; the widest gap is from step {widest[1]} to "
            f"{widest[2]}"
        )
        step = None
    fault = Fault(
        CHECK.name, "info", step, "" if step is None else series.path_of(step), evidence, CHECK.remedy
    )
    return Outcome((fault,), f"{some(len(steps), 'checkpoint')}")


CHECK = Check(
    name="spacing",
    cost="cheap",
    looks_for="uneven gaps between checkpoints",
    matters="A lead cannot be known better than the gap it lies in.",
    remedy="nothing where that is how they were saved; else a checkpoint was lost",
    look=look,
)
