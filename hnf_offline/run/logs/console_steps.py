"""Which step a printed row belongs to, where the row itself does not say it."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

#: tqdm's bar without a description: " 10%|# | 10/100 [00:05<00:45,  2.0it/s]".
_BAR = re.compile(r"^\s{0,20}\d{1,3}%\|[^|]{0,400}\|\s{0,20}(\d{1,15})/(\d{1,15}) \[")
#: What the Trainer says before the first step; source: transformers 5.23.0 src/transformers/trainer.py.
_TOTAL = re.compile(r"Total optimization steps = ([\d,]{1,20})")
_EPOCHS = re.compile(r"Num Epochs = ([\d,]{1,12})")


class ConsoleSteps:
    """Watches the lines between rows for a progress bar, which is drawn anew right after a row was printed."""

    def __init__(self) -> None:
        self._bars: dict[int, array[int]] = {}  # total of a bar -> row, position, row, position...
        self._epochs = array("d")
        self._training = array("b")
        self._waiting: set[int] = set()
        self._total: int | None = None
        self._all_epochs: int | None = None

    def line(self, line: str) -> None:
        """Take a line that is no row."""
        if "%|" in line:
            found = _BAR.match(line[:1000])
            if found is not None and len(self._training):
                position, total = int(found[1]), int(found[2])
                if total not in self._waiting and len(self._bars.keys() | {total}) <= 16:
                    self._waiting.add(total)
                    self._bars.setdefault(total, array("q")).extend((len(self._training) - 1, position))
        elif "=" in line and self._total is None:
            steps, epochs = _TOTAL.search(line[:500]), _EPOCHS.search(line[:500])
            if steps is not None:
                self._total = int(steps[1].replace(",", "") or 0)
            if epochs is not None:
                self._all_epochs = int(epochs[1].replace(",", "") or 0)

    def row(self, number: int, row: Mapping[str, float]) -> None:
        """Take a row."""
        self._waiting.clear()
        self._epochs.append(row.get("epoch", float("nan")))
        self._training.append("loss" in row)

    def numbered(self) -> tuple[pl.Series, str]:
        """Give each row its step.

        Returns:
            The steps (f64, null where nothing tells), and a sentence that says where they come from.
        """
        import polars as pl

        steps = self._from_bar()
        if steps is not None:
            return pl.Series(
                steps, dtype=pl.Float64
            ), "The rows have no step; theirs is that of the progress bar."
        steps = self._from_epochs()
        if steps is not None:
            said = "The rows have no step; theirs is that of their epoch and the steps of an epoch."
            return pl.Series(steps, dtype=pl.Float64), said
        counted: list[float | None] = []
        count = 0
        for training in self._training:
            count += training
            counted.append(float(max(count, 1)))
        said = "The rows have no step and nothing tells it: they are counted, so a step here is a row of the log."
        return pl.Series(counted, dtype=pl.Float64), said

    def _from_bar(self) -> list[float | None] | None:
        # The training bar is the one that is drawn after most rows with a loss.
        shares = Counter({
            total: sum(self._training[row] for row in pairs[::2]) for total, pairs in self._bars.items()
        })
        if not shares:
            return None
        total, covered = max(shares.items(), key=lambda item: (item[1], item[0]))
        if covered < 0.5 * sum(self._training):
            return None
        pairs = self._bars[total]
        known = dict(zip(pairs[::2], pairs[1::2], strict=True))
        # A row after which no bar was drawn has the step of its epoch, by the longest stretch that is known.
        last = max((row for row in known if self._epochs[row] > 0), default=None)
        rate = known[last] / self._epochs[last] if last is not None else float("nan")
        return [
            float(known[row]) if row in known else _whole(epoch * rate)
            for row, epoch in enumerate(self._epochs)
        ]

    def _from_epochs(self) -> list[float | None] | None:
        if not self._total or not self._all_epochs:
            return None
        rate = self._total / self._all_epochs
        steps = [_whole(epoch * rate) for epoch in self._epochs]
        trained = [step for step, training in zip(steps, self._training, strict=True) if training]
        # Epochs are printed with two digits: too few for rows that are close together.
        return steps if None not in trained and len(set(trained)) == len(trained) else None


def _whole(step: float) -> float | None:
    return float(round(step)) if abs(step) < 2**53 else None  # NaN is not
