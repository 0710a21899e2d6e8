"""Numbers that were logged one by one, each under its own name, become the rows of one table."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hnf_offline.run.logs.columns import SYNONYMS, normalised

if TYPE_CHECKING:
    import polars as pl

#: Bounds on a table: names, numbers, and cells with the empty ones between them.
MOST_NAMES = 2_000
MOST_NUMBERS = 50_000_000
MOST_CELLS = 50_000_000
_LONGEST_NAME = 300
_KNOWN = frozenset(name for names in SYNONYMS.values() for name in names)


@dataclass(slots=True)
class Cells:
    """Numbers of named columns in compact arrays; rows are known by a stretch and a place in it.

    Attributes:
        dropped: numbers that found no room, known after adding.
    """

    dropped: int = 0
    _names: dict[str, int] = field(default_factory=dict)
    _stretches: array[int] = field(default_factory=lambda: array("q"))
    _places: array[int] = field(default_factory=lambda: array("q"))
    _columns: array[int] = field(default_factory=lambda: array("i"))
    _values: array[float] = field(default_factory=lambda: array("d"))

    def __len__(self) -> int:
        """Count the numbers that were added.

        Returns:
            Their number.
        """
        return len(self._values)

    def add(self, name: str, place: int, value: float, stretch: int = 0) -> None:
        """Add one number; of several in one cell the last counts."""
        column = self._names.get(name)
        if column is None:
            if len(self._names) >= MOST_NAMES or len(name) > _LONGEST_NAME:
                self.dropped += 1
                return
            column = self._names[name] = len(self._names)
        if len(self._values) >= MOST_NUMBERS or not -(2**63) <= place < 2**63:
            self.dropped += 1
            return
        self._stretches.append(stretch)
        self._places.append(place)
        self._columns.append(column)
        self._values.append(value)

    def table(self, place: str | None = None) -> tuple[pl.DataFrame, tuple[str, ...]]:
        """Make the table: one row a stretch and place, in that order.

        Where names and rows would make more cells than fit, the names of a training log's columns and then
        those with the most numbers are kept.

        Args:
            place: name of the column that tells the place, None where it is only an order.

        Returns:
            f64 columns, and what had to be left out, one sentence each.
        """
        import polars as pl

        numbers = pl.DataFrame({
            "stretch": pl.Series(self._stretches, dtype=pl.Int64),
            "place": pl.Series(self._places, dtype=pl.Int64),
            "column": pl.Series(self._columns, dtype=pl.Int32),
            "value": pl.Series(self._values, dtype=pl.Float64),
        }).unique(["stretch", "place", "column"], keep="last", maintain_order=True)
        key = ["stretch", "place"]
        rows = numbers.select(key).unique().sort(key)
        parts = {int(part["column"][0]): part for part in numbers.partition_by("column")}
        names = list(self._names)
        wanted = sorted(
            parts, key=lambda one: (normalised(names[one]) not in _KNOWN, -parts[one].height, one)
        )
        kept = wanted[: max(1, MOST_CELLS // max(1, rows.height))]
        columns = [rows["place"].cast(pl.Float64).alias(place)] if place is not None else []
        for one in sorted(kept):
            name = names[one] if names[one] != place else f"{place} (logged)"
            joined = rows.join(parts[one].select(*key, "value"), on=key, how="left", maintain_order="left")
            columns.append(joined["value"].alias(name))
        notes = []
        if len(kept) < len(wanted):
            notes.append(
                f"{len(wanted) - len(kept)} of {len(wanted)} columns were left out: there are too many."
            )
        if self.dropped:
            notes.append(
                f"{self.dropped} numbers were left out: there are too many, or their names are too long."
            )
        return pl.DataFrame(columns), tuple(notes)


@dataclass(slots=True)
class Scalars:
    """Named series with steps of their own, in the order in which they were written.

    A series whose step goes back begins a new stretch for all of them: the run was resumed, or so it seems; whether
    it was is told by the loss (`run.logs.merge`). Series that count differently (epochs beside steps) begin none.
    """

    cells: Cells = field(default_factory=Cells)
    _stretch: int = 0
    _last: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, step: int, value: float) -> None:
        """Add the next number."""
        if step < self._last.get(name, step):
            self._stretch += 1
            self._last.clear()
        if name in self._last or len(self._last) < MOST_NAMES:
            self._last[name] = step
        self.cells.add(name, step, value, self._stretch)

    def table(self) -> tuple[pl.DataFrame, tuple[str, ...]]:
        """Make the table, with a column `step`.

        Returns:
            f64 columns, one row a step of each stretch, and what had to be left out.
        """
        return self.cells.table("step")


def listed(names: Sequence[str], most: int = 6) -> str:
    """Spell the first of some names.

    Returns:
        Them with commas, and how many more there are.
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
