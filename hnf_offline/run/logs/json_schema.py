"""What a block of JSON lines is like, and the columns that its lines have: known, or learnt from the block."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hnf_offline.run.logs.rows import MOST_COLUMNS

if TYPE_CHECKING:
    import polars as pl

    Kind = pl.DataType

#: Brackets that open in a line given to polars, whose reader ends the process at some hundred levels.
_MOST_OPENINGS = 64
#: Lines of a block that are looked at to learn its columns.
_SAMPLE = 20
_NAME = re.compile(rb'"([^"\\\n]{0,300})"\s{0,4}:')
#: A line with this key describes the run and is no row.
DESCRIPTION = "_meta"


@dataclass(frozen=True, slots=True)
class Shape:
    """What a block is like, without parsing it.

    Attributes:
        lines: at least its rows.
        flat: whether no bracket opens but one at the beginning of each line.
        shallow: whether no line opens more brackets than can be nested safely, whatever closes between them.
    """

    lines: int
    flat: bool
    shallow: bool

    @classmethod
    def of(cls, block: bytes) -> Shape:
        """Look at a block of whole lines.

        Returns:
            What it is like.
        """
        import numpy as np

        data = np.frombuffer(block, np.uint8)
        opens = np.flatnonzero(data == 123)
        inside = opens[opens > 0]
        if b"[" not in block and bool((data[inside - 1] == 10).all()):
            return cls(len(opens) + 1, flat=True, shallow=True)
        opens = np.flatnonzero((data == 123) | (data == 91))
        ends = np.flatnonzero(data == 10)
        most = int(np.bincount(np.searchsorted(ends, opens)).max()) if len(opens) else 0
        return cls(len(ends) + 1, flat=False, shallow=most <= _MOST_OPENINGS)


def sampled(block: bytes) -> dict[str, Kind]:
    """Learn columns from the first lines of a block of flat objects and from its last.

    Returns:
        Name -> kind, numbers as f64.
    """
    import polars as pl

    kinds: dict[str, Kind] = {}
    for line in _sample(block):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        for name, value in row.items() if isinstance(row, dict) else ():
            kind = pl.String() if isinstance(value, str | bool) else pl.Float64()
            kinds[name] = kind if name not in kinds else _common(kinds[name], kind)
    return kinds


def has_few_names(block: bytes) -> bool:
    """Tell whether a block has no more names than are read; with many, polars learns them in quadratic time.

    Returns:
        Whether it has.
    """
    names: set[bytes] = set()
    for found in _NAME.finditer(block):
        names.add(found[1])
        if len(names) > MOST_COLUMNS:
            return False
    return True


def inferred(block: bytes) -> dict[str, Kind]:
    """Learn the columns of a whole block.

    Returns:
        Name -> kind, every number as f64.
    """
    import polars as pl

    found = pl.scan_ndjson(block, infer_schema_length=None).collect_schema()
    return {name: _plain(kind) for name, kind in found.items() if name != DESCRIPTION}


def together(known: Mapping[str, Kind], more: Mapping[str, Kind]) -> dict[str, Kind]:
    """Put together what two parts of a file taught.

    Returns:
        Kinds that hold the values of both.
    """
    return {
        **known,
        **{name: _common(known[name], kind) if name in known else kind for name, kind in more.items()},
    }


def leaves(schema: Mapping[str, Kind]) -> int:
    """Count the columns of a schema, those inside others one by one.

    Returns:
        Their number, or one that is too many.
    """
    import polars as pl

    kinds: list[object] = list(schema.values())
    count = 0
    while kinds and count <= MOST_COLUMNS:
        kind = kinds.pop()
        if isinstance(kind, pl.Struct):
            kinds.extend(field.dtype for field in kind.fields)
        else:
            count += 1
    return count


def has_all(frame: pl.DataFrame, block: bytes) -> bool:
    """Tell whether a frame has all the values of its block: as many as the block has names, nulls aside.

    Returns:
        False also where it cannot be told.
    """
    import numpy as np

    values = sum(_values(column) for column in frame.iter_columns())
    if values == int(np.count_nonzero(np.frombuffer(block, np.uint8) == 58)):
        return True  # as many colons
    if b'" :' in block:
        return False
    return values + block.count(b": null") + block.count(b":null") == block.count(b'":')


def _values(column: pl.Series) -> int:
    import polars as pl

    count = len(column) - column.null_count()
    if isinstance(column.dtype, pl.Struct):
        count += sum(_values(inner) for inner in column.struct.unnest().iter_columns())
    return count


def _common(one: Kind, other: Kind) -> Kind:
    import polars as pl

    if isinstance(one, pl.Struct) and isinstance(other, pl.Struct):
        fields = together(
            {field.name: field.dtype for field in one.fields},  # type: ignore[misc]
            {field.name: field.dtype for field in other.fields},  # type: ignore[misc]
        )
        return pl.Struct(fields)
    if one == other or isinstance(one, pl.String):
        return one
    return pl.String() if isinstance(other, pl.String | pl.Boolean) else other


def _plain(kind: object) -> Kind:
    # One kind for numbers, so that a block with whole numbers is read as one with fractions.
    import polars as pl

    if isinstance(kind, pl.Struct):
        return pl.Struct({field.name: _plain(field.dtype) for field in kind.fields})
    if kind == pl.Null or (isinstance(kind, pl.DataType) and kind.is_numeric()):
        return pl.Float64()
    return kind if isinstance(kind, pl.DataType) else pl.String()


def _sample(block: bytes) -> Iterator[bytes]:
    position = 0
    for _ in range(_SAMPLE):
        end = block.find(b"\n", position)
        if end < 0:
            break
        yield block[position:end]
        position = end + 1
    end = len(block) - block.endswith(b"\n")
    yield block[max(block.rfind(b"\n", 0, end) + 1, position) : end]
