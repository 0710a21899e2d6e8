"""From a threshold to few alarms: one an episode, one a checkpoint however many layers are past it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hnf_offline.detect.measured import Measured
from hnf_offline.detect.trailing import Flags
from hnf_offline.findings import Alarm

#: Steps in which values measured at every step may fall below a threshold and pass it again: one episode.
APART = 16


@dataclass(frozen=True, slots=True)
class Episode:
    """One series at the row where it went past a threshold.

    Attributes:
        series: the series.
        row: its row.
        threshold: what it passed.
        size: how far; the largest of a checkpoint is named.
    """

    series: Measured
    row: int
    threshold: float
    size: float

    @property
    def step(self) -> int:
        """The checkpoint."""
        return int(self.series.steps[self.row])

    @property
    def place(self) -> str:
        """Where that was measured: "checkpoint 192", or "step 185" for a row of the zoom."""
        return self.series.place(self.row)

    @property
    def value(self) -> float:
        """The value there."""
        return float(self.series.values[self.row])


@dataclass(frozen=True, slots=True)
class Together:
    """The series of one quantity that went past their thresholds at the same checkpoint.

    Attributes:
        whole: the whole model's, None where it did not.
        worst: the layer that went furthest, None where only the whole model did.
        others: how many more layers.
    """

    whole: Episode | None
    worst: Episode | None
    others: int

    @property
    def told(self) -> Episode:
        """The one that the alarm is about: the whole model's where there is one."""
        told = self.whole or self.worst
        assert told is not None
        return told

    @property
    def more(self) -> str:
        """The rest in words, "" for none.

        "and 3 more layers", or beside the whole model "most in blocks.2, and in 3 more layers".
        """
        if self.whole is None or self.worst is None:
            return f"and {count(self.others)}" if self.others else ""
        most = f"most in {self.worst.series.layer}"
        return f"{most}, and in {count(self.others)}" if self.others else most


def count(layers: int) -> str:
    """Count further layers.

    Returns:
        "1 more layer", "3 more layers".
    """
    return f"{layers} more layer{'' if layers == 1 else 's'}"


def starts(on: Flags, off: Flags | None = None, rows: int = 1) -> list[int]:
    """Rows at which an episode starts: `on`, and `off` has held for `rows` rows in a row since the last one.

    Args:
        on: beyond the threshold.
        off: back below the one that arms again; where it is not given, not `on`.
        rows: so many rows in a row must be `off`.

    Returns:
        Row numbers.
    """
    if not on.any():
        return []
    quiet = ~on if off is None else off & ~on
    below = np.concatenate([[0], np.cumsum(quiet)])
    # First rows at which the last `rows` rows were quiet.
    armed_at = rows + np.flatnonzero(below[rows:] - below[:-rows] == rows)
    high = np.flatnonzero(on)
    found = [int(high[0])]
    while True:
        place = int(np.searchsorted(armed_at, found[-1] + 1))
        if place == armed_at.size:
            return found
        following = int(np.searchsorted(high, armed_at[place]))
        if following == high.size:
            return found
        found.append(int(high[following]))


def told_apart(series: Measured, found: list[int], on: Flags) -> list[int]:
    """Leave out episodes that are only an earlier one looked at closely, step by step.

    Returns:
        The rows that start an episode, without those within `APART` steps of the row that was last `on`, where
        either of the two is of a zoom.
    """
    high = np.flatnonzero(on)
    kept = []
    for row in found:
        earlier = high[high < row]
        near = earlier.size and series.steps[row] - series.steps[earlier[-1]] <= APART
        if not (near and (series.from_zoom(row) or series.from_zoom(int(earlier[-1])))):
            kept.append(row)
    return kept


def together(episodes: Iterable[Episode]) -> list[Together]:
    """Join the episodes of one quantity that start at the same checkpoint.

    Returns:
        One group a (quantity, checkpoint), by step.
    """
    groups: dict[tuple[int, str], list[Episode]] = {}
    for episode in episodes:
        groups.setdefault((episode.step, episode.series.quantity), []).append(episode)
    found = []
    for _, group in sorted(groups.items(), key=lambda item: item[0]):
        whole = max((one for one in group if not one.series.layer), key=lambda one: one.size, default=None)
        largest: dict[str, Episode] = {}
        for one in group:
            layer = one.series.layer
            if layer and (layer not in largest or one.size > largest[layer].size):
                largest[layer] = one
        worst = max(largest.values(), key=lambda one: one.size, default=None)
        found.append(Together(whole, worst, max(len(largest) - 1, 0)))
    return found


def alarm(episode: Episode, rule: str, severity: str, text: str, action: str = "") -> Alarm:
    """An alarm at the start of an episode, known at that row's step.

    Returns:
        The alarm.
    """
    series, step = episode.series, episode.step
    return Alarm(
        step,
        step,
        series.quantity,
        series.layer,
        episode.value,
        episode.threshold,
        rule,
        severity,
        text,
        action,
    )
