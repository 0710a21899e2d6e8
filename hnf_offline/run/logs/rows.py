"""Rows of numbers collected column by column, in memory bounded by the text they come from."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hnf_offline.run.logs.raw import as_number

if TYPE_CHECKING:
    import polars as pl

#: Columns of a log; keys beyond them are left out, as are those longer than `_LONGEST_NAME`.
MOST_COLUMNS = 2_000
_LONGEST_NAME = 300
#: Cells of a frame, empty ones included, that are always allowed; and how many there may be to each value.
_CELLS, _CELLS_PER_VALUE = 16_000_000, 8


#: Rows of a frame that is large enough to stay by itself, and cells of one that is made of smaller ones.
_SMALL, _FEW_CELLS = 100_000, 4_000_000


class Rows:
    """Collects rows; a column takes memory only where it has values."""

    def __init__(self) -> None:
        self.height = 0
        self._columns: dict[str, tuple[array[int], array[float]]] = {}
        self._left_out = False

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row: numbers and texts that are numbers; other values become null."""
        for name, value in row.items():
            number = value if type(value) is float else as_number(value)
            if number is not None:
                self._put(name, number)
        self.height += 1

    def amend(self, name: str, value: float) -> None:
        """Set a value of the row that was added last."""
        self.height -= 1
        self._put(name, value)
        self.height += 1

    def copy(self) -> Rows:
        """Copy the rows, so that the copy can be amended.

        Returns:
            Rows that share nothing with these.
        """
        other = Rows()
        other.height, other._left_out = self.height, self._left_out
        other._columns = {name: (rows[:], values[:]) for name, (rows, values) in self._columns.items()}
        return other

    def fill(self, name: str, value: float) -> None:
        """Give a column that has values this one wherever it has none."""
        if name in self._columns:
            rows, values = self._columns[name]
            known = dict(zip(rows, values, strict=True))
            filled = array("d", (known.get(row, value) for row in range(self.height)))
            self._columns[name] = (array("q", range(self.height)), filled)

    def frame(self) -> pl.DataFrame:
        """Make the frame.

        Returns:
            One f64 column a name that has a number anywhere.
        """
        import numpy as np
        import polars as pl

        counts = {name: len(rows) for name, (rows, _) in self._columns.items()}
        columns = []
        for name in fitting(counts, self.height):
            rows, values = self._columns[name]
            where = np.frombuffer(rows, np.int64)
            numbers = np.frombuffer(values, np.float64)
            if len(where) == self.height:
                columns.append(pl.Series(name, numbers.copy()))  # rows may still be added
                continue
            dense = np.zeros(self.height)
            dense[where] = numbers
            present = np.zeros(self.height, dtype=bool)
            present[where] = True
            cells = pl.DataFrame({name: dense, "_present": present})
            columns.append(cells.select(pl.when("_present").then(name)).to_series())
        return pl.DataFrame(columns)

    def notes(self) -> tuple[str, ...]:
        """Say which columns were left out.

        Returns:
            A sentence, if any were.
        """
        counts = {name: len(rows) for name, (rows, _) in self._columns.items()}
        kept = len(fitting(counts, self.height))
        return left_out(kept) if self._left_out or kept < len(counts) else ()

    def _put(self, name: str, value: float) -> None:
        column = self._columns.get(name)
        if column is None and not name.isascii():
            # JSON can spell half a character, which no frame takes.
            name = name.encode("utf-8", "replace").decode("utf-8")
            column = self._columns.get(name)
        if column is None:
            if len(self._columns) >= MOST_COLUMNS or len(name) > _LONGEST_NAME:
                self._left_out = True
                return
            column = self._columns[name] = (array("q"), array("d"))
        rows, values = column
        if rows and rows[-1] == self.height:
            values[-1] = value
        else:
            rows.append(self.height)
            values.append(value)


def fitting(counts: Mapping[str, int], height: int) -> list[str]:
    """Choose the columns of a frame that is not much larger than what is in it.

    A million rows of which each has a name of its own are a small text, and a large frame.

    Args:
        counts: values of each column.
        height: rows of the frame.

    Returns:
        All columns where they fit; those with the most values otherwise, in their order.
    """
    cells = max(_CELLS, _CELLS_PER_VALUE * sum(counts.values()))
    most = min(MOST_COLUMNS, cells // max(height, 1))
    if len(counts) <= most:
        return list(counts)
    kept = set(sorted(counts, key=lambda name: -counts[name])[:most])
    return [name for name in counts if name in kept]


def left_out(kept: int) -> tuple[str, ...]:
    """Say that columns were left out.

    Returns:
        One sentence.
    """
    return (
        f"The log has more columns than are read; {kept:,} of them were, those with the most values first.",
    )


def compact(frames: list[pl.DataFrame]) -> list[pl.DataFrame]:
    """Put frames together that are small, so that a log that grows by a few rows at a time is not thousands of frames.

    Args:
        frames: frames of f64 columns.

    Returns:
        The same rows, most frames more than twice as high as the next one, so that a row is copied but a few times.
    """
    import polars as pl

    kept: list[pl.DataFrame] = []
    for frame in frames:
        last = frame
        while kept and kept[-1].height <= min(2 * last.height, _SMALL) and _are_few(kept[-1], last):
            last = pl.concat([kept.pop(), last], how="diagonal", rechunk=True)
        if last.width:
            kept.append(last)
    return kept


def _are_few(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    return (one.height + other.height) * len({*one.columns, *other.columns}) <= _FEW_CELLS


def joined(frames: Sequence[pl.DataFrame]) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Put frames of f64 columns below each other; a column that one lacks is null there.

    Returns:
        The frame, and a sentence where columns had to be left out.
    """
    import polars as pl

    frames = [frame for frame in frames if frame.width]
    if not frames:
        return pl.DataFrame(), ()
    counts: dict[str, int] = {}
    for frame in frames:
        for column in frame.iter_columns():
            counts[column.name] = counts.get(column.name, 0) + len(column) - column.null_count()
    kept = fitting(counts, sum(frame.height for frame in frames))
    notes: tuple[str, ...] = ()
    if len(kept) < len(counts):
        names = set(kept)
        frames = [frame.select(name for name in frame.columns if name in names) for frame in frames]
        notes = left_out(len(kept))
    if len(frames) == 1:
        return frames[0].select(kept), notes
    return pl.concat(frames, how="diagonal").select(kept), notes
