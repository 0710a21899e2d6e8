"""JSON lines: one object a line, nested keys flattened with "/"."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from hnf_offline.run.logs.raw import RawLog, flatten, frame_of, numeric

if TYPE_CHECKING:
    import polars as pl

_SUFFIXES = (".jsonl", ".ndjson", ".json", ".log", ".txt")


def recognises(path: Path, head: str) -> bool:
    """Tell JSON lines by a first line that is a whole object, or by the suffix.

    Returns:
        True where `read` should be tried.
    """
    first = head.lstrip("\ufeff \r\n").split("\n", 1)[0].rstrip()
    if path.suffix in {".jsonl", ".ndjson"}:
        return True
    return path.suffix in _SUFFIXES and first.startswith("{") and first.endswith("}")


def read(path: Path) -> RawLog:
    """Read JSON lines: fast where every line is strict JSON, line by line where some are not.

    Bare NaN and Infinity, numbers in quotes and nulls are read; other lines are counted as skipped.
    A first line that only describes the run (`{"_meta": ...}`) is neither a row nor a skipped line.

    Returns:
        Its numeric columns.
    """
    import polars as pl

    try:
        frame = _unnested(pl.read_ndjson(path, infer_schema_length=None))
    except (pl.exceptions.PolarsError, OSError, RuntimeError):
        return _read_lines(path)
    return RawLog(_without_empty_rows(numeric(frame)))


def _read_lines(path: Path) -> RawLog:
    rows = []
    skipped = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                skipped += 1
                continue
            if isinstance(row, dict):
                rows.append(flatten({key: value for key, value in row.items() if key != "_meta"}))
            else:
                skipped += 1
    return RawLog(_without_empty_rows(frame_of(rows)), skipped)


def _unnested(frame: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    frame = frame.drop("_meta", strict=False)
    for _ in range(8):
        nested = [name for name, kind in frame.schema.items() if isinstance(kind, pl.Struct)]
        if not nested:
            break
        parts = []
        for column in frame.iter_columns():
            if isinstance(column.dtype, pl.Struct):
                inner = column.struct.unnest()
                parts.append(inner.rename({name: f"{column.name}/{name}" for name in inner.columns}))
            else:
                parts.append(column.to_frame())
        frame = pl.concat(parts, how="horizontal")
    return frame


def _without_empty_rows(frame: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    return frame.filter(pl.any_horizontal(pl.all().is_not_null())) if frame.width else frame
