"""What is left of the alarms with fewer checkpoints: on the study's page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from benchmarks.study.analysis import Analysed
from benchmarks.study.imminence import NAME
from benchmarks.study.scoring import WINDOW, pooled
from benchmarks.study.tables import leads, shares, table
from hnf_offline.relate.events import clusters
from hnf_offline.relate.relations import PRIMARY
from hnf_offline.relate.resolution import ANNOUNCED, FEWEST


def section(members: Sequence[Analysed]) -> Iterator[str]:
    """Spell it, by gap and by gap over the distance between spikes.

    Yields:
        Headings, paragraphs and tables.
    """
    yield "## With fewer checkpoints"
    yield (
        "All runs, read as if checkpoints had been saved less often, each gap from two places; the longest "
        f"lead that counts is {WINDOW} steps, or two gaps."
    )
    yield _by_gap(members)
    yield "### By the distance between spikes"
    yield (
        "Runs with three spikes or more; the gap over the median distance between their spikes; leads of up to "
        f"{WINDOW} steps. A reading whose gap is longer than the window is there too: it can announce next to nothing."
    )
    yield _by_distance(members)


def _by_gap(members: Sequence[Analysed]) -> str:
    rows = []
    for gap in sorted({one.gap for run in members for one in (run, *run.sparser)}):
        readings = [one for run in members for one in (run, *run.sparser) if one.gap == gap]
        for rule in (PRIMARY, NAME, "S > 1", "forecast"):
            for window in sorted({WINDOW, max(WINDOW, 2 * gap)}):
                found = pooled(readings, rule, window)
                if found is not None and found.alarms:
                    rows.append([
                        str(gap),
                        rule,
                        str(window),
                        str(found.runs),
                        *shares(found),
                        leads(found),
                    ])
    head = ["gap", "rule", "longest lead", "runs", "recall", "chance", "precision", "chance", "lead"]
    return table(head, rows)


def by_distance(members: Sequence[Analysed]) -> list[tuple[float, float, list[Analysed]]]:
    """Sort all readings by how far checkpoints lie apart for the spikes of their run.

    Returns:
        Lower and upper end of the ratio, and the readings between them.
    """
    found = []
    for run in members:
        starts = clusters(run.onsets, run.first, run.last)
        if len(starts) >= FEWEST:
            distance = float(np.median(np.diff(starts)))
            found += [(one.gap / distance, one) for one in (run, *run.sparser)]
    ends = [0.0, *(upper for upper, _, _ in ANNOUNCED)]
    return [(low, high, [one for ratio, one in found if low < ratio <= high]) for low, high in pairwise(ends)]


def _by_distance(members: Sequence[Analysed]) -> str:
    rows = [
        [
            f"up to {high:g}" if math.isfinite(high) else f"above {low:g}",
            rule,
            str(len(readings)),
            str(found.spikes),
            *shares(found),
        ]
        for low, high, readings in by_distance(members)
        for rule in (PRIMARY, "S > 1")
        for found in [pooled(readings, rule, WINDOW)]
        if found is not None
    ]
    head = ["gap / distance", "rule", "readings", "spikes", "recall", "chance", "precision", "chance"]
    return table(head, rows)
