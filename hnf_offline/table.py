"""The long table: the one thing that travels between the rooms (one row a measured value)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

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
class Block:
    """Values of one quantity of several layers at several checkpoints; the attributes are columns, as `Row` says.

    Attributes:
        places: paths, kinds and depths of the layers.
        quantity: its name.
        values: [checkpoints, layers]; a layer has no row where this is not finite.
        bounds: lower ends, upper ends, and whether a value is certified, shaped alike; None where values are exact.
    """

    places: tuple[Sequence[str], Sequence[str], Sequence[int]]
    quantity: str
    values: NDArray[np.float64]
    bounds: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]] | None = None


class Rows:
    """Rows of one checkpoint, held in blocks: of a thousand at once, an object each would take most of the time."""

    def __init__(self, step: int) -> None:
        """Hold none yet.

        Args:
            step: of the checkpoint.
        """
        self._step = step
        self._blocks: list[tuple[Block, int, str]] = []

    def __iter__(self) -> Iterator[Row]:
        """Give one row after another."""
        return (Row(*values) for values in zip(*self.columns().values(), strict=True))

    def add(self, block: Block, checkpoint: int, batch: str = "") -> None:
        """Add what a block says of this checkpoint.

        Args:
            block: the values.
            checkpoint: which of its checkpoints this is.
            batch: of all these rows.
        """
        self._blocks.append((block, checkpoint, batch))

    def columns(self) -> dict[str, list[Any]]:
        """Put the blocks together.

        Returns:
            The values by column.
        """
        columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        for block, at, batch in self._blocks:
            values = block.values[at].tolist()
            there = [index for index, value in enumerate(values) if math.isfinite(value)]
            count = len(there)
            bounds: list[Sequence[Any]] = [[None] * count, [None] * count, [True] * count]
            if block.bounds is not None:
                bounds = [_chosen(each[at].tolist(), there) for each in block.bounds]
            added: tuple[Sequence[Any], ...] = (
                [self._step] * count,
                *(_chosen(each, there) for each in block.places),
                [block.quantity] * count,
                _chosen(values, there),
                *bounds,
                [batch] * count,
                [SOURCES[0]] * count,
            )
            for column, more in zip(columns.values(), added, strict=True):
                column.extend(more)
        return columns


def _chosen(values: Sequence[Any], there: Sequence[int]) -> Sequence[Any]:
    return values if len(values) == len(there) else [values[at] for at in there]


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
    if isinstance(rows, Rows):
        columns = rows.columns()
    else:
        rows = list(rows)
        columns = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
    return sort(pl.DataFrame(columns, schema=schema()))


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
