"""The long table: the one thing that travels between the rooms (one row a measured value)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

#: Column name -> name of its polars type. `layer` is "" for the whole model.
COLUMNS = {
    "step": "Int64",
    "layer": "String",
    "kind": "String",
    "depth": "Int32",
    "quantity": "String",
    "value": "Float64",
    "low": "Float64",
    "high": "Float64",
    "certified": "Boolean",
    "batch": "String",
    "source": "String",
}

#: Where a value comes from: a checkpoint on disk, or the run retrained step by step between two of them.
SOURCES = ("checkpoint", "zoom")

#: What a layer can be; reports colour by it.
KINDS = (
    "embedding",
    "query",
    "key",
    "value",
    "out",
    "softmax",
    "mlp_up",
    "mlp_down",
    "norm",
    "head",
    "attention",
    "mlp",
    "block",
    "model",
    "other",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One measured value.

    Attributes:
        step: optimizer updates applied to the weights that were measured.
        layer: module path, "" for the whole model, `<attention>.softmax` for a softmax.
        kind: one of `KINDS`.
        depth: position in forward order: -1 the whole model, 0 the embedding, then layer by layer.
        quantity: a name of the catalogue, `family.quantity`.
        value: the measured value; may be NaN or infinite, which is a finding.
        low: lower end of the error bar, None where the value is exact.
        high: upper end of the error bar, None where the value is exact.
        certified: False where a solver stopped early or dominance is not sure.
        batch: which rows were replayed ("" where no batch is involved).
        source: one of `SOURCES`.
    """

    step: int
    layer: str
    kind: str
    depth: int
    quantity: str
    value: float
    low: float | None = None
    high: float | None = None
    certified: bool = True
    batch: str = ""
    source: str = "checkpoint"


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows held column by column: of a thousand at once, an object each would take most of the time.

    Attributes:
        columns: the values by column, all equally many.
    """

    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in COLUMNS})

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Rows:
        """Take rows apart.

        Args:
            rows: one after another.

        Returns:
            The same rows by column.
        """
        held = list(rows)
        return cls({name: [getattr(row, name) for row in held] for name in COLUMNS})

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.columns["value"])

    def __iter__(self) -> Iterator[Row]:
        """Give one row after another."""
        return (Row(*values) for values in zip(*self.columns.values(), strict=True))

    def add(
        self,
        step: int,
        places: tuple[Sequence[str], Sequence[str], Sequence[int]],
        quantity: str,
        values: Sequence[float],
        *,
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
        certified: Sequence[bool] | None = None,
        batch: str = "",
    ) -> None:
        """Add one quantity of several layers at one checkpoint; the arguments are what `Row` says.

        Args:
            step: of the checkpoint.
            places: paths, kinds and depths of the layers.
            quantity: its name.
            values: one a layer.
            low: one a layer; None where the values are exact.
            high: alike.
            certified: one a layer; None where all are.
            batch: of all of them.
        """
        count = len(values)
        added = (
            [step] * count,
            *places,
            [quantity] * count,
            values,
            [None] * count if low is None else low,
            [None] * count if high is None else high,
            [True] * count if certified is None else certified,
            [batch] * count,
            [SOURCES[0]] * count,
        )
        for column, more in zip(self.columns.values(), added, strict=True):
            column.extend(more)


def schema() -> dict[str, pl.DataType]:
    """Give the table's polars schema.

    Returns:
        Column name to polars data type, in column order.
    """
    import polars as pl

    return {name: getattr(pl, kind)() for name, kind in COLUMNS.items()}


def table(rows: Iterable[Row] = ()) -> pl.DataFrame:
    """Make the long table of some rows.

    Returns:
        The table, sorted by (step, depth, quantity).
    """
    import polars as pl

    # By columns: a dictionary a row would take most of the time.
    held = rows if isinstance(rows, Rows) else Rows.of(rows)
    return sort(pl.DataFrame(held.columns, schema=schema()))


def sort(profile: pl.DataFrame) -> pl.DataFrame:
    """Sort a long table by (step, depth, layer, quantity, batch), stably.

    Returns:
        The sorted table.
    """
    return profile.sort(["step", "depth", "layer", "quantity", "batch"], maintain_order=True)


def of_checkpoints(profile: pl.DataFrame) -> pl.DataFrame:
    """Leave out what was measured by zooming: those rows lie where somebody looked more closely.

    Whatever is counted over a whole run (recall, chance, regimes, change-points) is counted on these.

    Returns:
        The rows of checkpoints; the table itself where it has no others.
    """
    import polars as pl

    if "source" not in profile.columns:
        return profile
    return profile.filter(pl.col("source").fill_null("checkpoint") != "zoom")


def one_source(profile: pl.DataFrame) -> pl.DataFrame:
    """Of a quantity measured at a checkpoint and by zooming as well, keep the checkpoint's.

    Returns:
        The table without the rows of the zoom that have such a double; the table itself where it has none.
    """
    import polars as pl

    checkpoints = of_checkpoints(profile)
    if checkpoints.height == profile.height:
        return profile
    zoomed = profile.filter(pl.col("source") == "zoom")
    alone = zoomed.join(checkpoints, on=["step", "layer", "quantity"], how="anti", nulls_equal=True)
    return sort(pl.concat([checkpoints, alone]))


def series(profile: pl.DataFrame, quantity: str, layer: str = "") -> pl.DataFrame:
    """Select one quantity of one layer over the steps.

    Returns:
        The matching rows, sorted by step; empty where the quantity was not measured.
    """
    import polars as pl

    return profile.filter((pl.col("quantity") == quantity) & (pl.col("layer") == layer)).sort("step")
