"""Blocks of JSON lines become frames: by polars where that is safe and right, by Python's own reader elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from hnf_offline.run.logs.json_schema import (
    DESCRIPTION,
    Shape,
    has_all,
    has_few_names,
    inferred,
    leaves,
    sampled,
    together,
)
from hnf_offline.run.logs.lines import without_noise
from hnf_offline.run.logs.raw import flatten, numeric
from hnf_offline.run.logs.rows import MOST_COLUMNS, Rows

if TYPE_CHECKING:
    import polars as pl

#: Cells of a frame that polars makes of a block.
_MOST_CELLS = 20_000_000
#: Lines of a block that polars refused, of which it is given so many at a time.
_PART = 500

#: Bare NaN and infinity, which strict JSON has not, and the numbers that stand for them while polars reads.
_BARE = (
    (re.compile(rb"NaN"), b"1.7418529630741853e303"),
    (re.compile(rb"Infinity"), b"1.3692581470369258e304"),
)
_BEFORE, _AFTER = b" \t:,[-", b" \t\r\n,}]"


class JsonReader:
    """Reads the blocks of one file.

    Attributes:
        skipped: lines that were no object, so far.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self._left_out: tuple[str, ...] = ()
        self._schema: dict[str, pl.DataType] = {}

    def frames(self, block: bytes) -> Iterator[pl.DataFrame]:
        """Read a block of whole lines.

        Yields:
            Frames of f64 columns, in the order of the lines.
        """
        frame = self._with_bare(block)
        if frame is not None:
            yield frame
            return
        lines = _bracketed(block)
        self.skipped += sum(1 for line in block.split(b"\n") if line.strip()) - len(lines)
        if not has_few_names(block):
            yield self._one_by_one(lines)
            return
        frame = self._with_bare(b"\n".join(lines)) if lines else None
        if frame is not None:
            yield frame
            return
        for start in range(0, len(lines), _PART):
            yield self._part(lines[start : start + _PART])

    def notes(self) -> tuple[str, ...]:
        """Say which columns were left out.

        Returns:
            A sentence, if any were.
        """
        return self._left_out

    def _part(self, lines: list[bytes]) -> pl.DataFrame:
        # Some lines of a block that cannot be read as it is.
        frame = self._with_bare(b"\n".join(lines))
        if frame is not None:
            return frame
        objects = [line for line in lines if _is_object(line)]
        self.skipped += len(lines) - len(objects)
        frame = self._with_bare(b"\n".join(objects)) if objects and len(objects) < len(lines) else None
        return self._one_by_one(objects) if frame is None else frame

    def _with_bare(self, block: bytes) -> pl.DataFrame | None:
        # Read NaN and infinity as numbers that the block has not, and put them back.
        import polars as pl

        (nan, nan_number), (infinity, infinity_number) = _BARE
        has_nan, has_infinity = b"NaN" in block, b"Infinity" in block
        if not has_nan and not has_infinity:
            return self._strict(block)
        if nan_number in block or infinity_number in block:
            return None
        block = nan.sub(_stand_in(nan_number), block) if has_nan else block
        block = infinity.sub(_stand_in(infinity_number), block) if has_infinity else block
        frame = self._strict(block)
        if frame is None or not frame.width:
            return frame
        size = pl.all().abs()
        return frame.with_columns(
            pl
            .when(size == float(nan_number))
            .then(float("nan"))
            .when(size == float(infinity_number))
            .then(pl.all().sign() * float("inf"))
            .otherwise(pl.all())
            .name.keep()
        )

    def _strict(self, block: bytes) -> pl.DataFrame | None:
        # The frame of a block whose every line is strict JSON of a bounded shape; None for any other.
        shape = Shape.of(block)
        if not shape.shallow:
            return None
        if shape.flat:
            seen = sampled(block)
            known = together(self._schema, seen)
            self._schema = known if leaves(known) <= MOST_COLUMNS else seen
            self._schema.pop(DESCRIPTION, None)
        frame, is_json = _read(block, self._schema, shape.lines)
        if not is_json:
            return None
        if frame is None or not has_all(frame, block):
            if not has_few_names(block):
                return None
            try:
                learnt = inferred(block)
            except _faults():
                return None
            if leaves(learnt) > MOST_COLUMNS:
                return None
            self._schema = together(self._schema, learnt)
            if leaves(self._schema) > MOST_COLUMNS:
                self._schema = learnt
            frame, _ = _read(block, learnt, shape.lines)
        return None if frame is None else numeric(_unnested(frame))

    def _one_by_one(self, lines: list[bytes]) -> pl.DataFrame:
        rows = Rows()
        for line in lines:
            try:
                row = json.loads(without_noise(line.decode("utf-8", "replace")))
            except (ValueError, RecursionError):
                self.skipped += 1
                continue
            if isinstance(row, dict):
                rows.add(flatten({key: value for key, value in row.items() if key != DESCRIPTION}))
            else:
                self.skipped += 1
        self._left_out = self._left_out or rows.notes()
        return rows.frame()


def _read(block: bytes, schema: dict[str, pl.DataType], lines: int) -> tuple[pl.DataFrame | None, bool]:
    # The frame, if the block has but these columns and kinds; and whether it may still be JSON if not.
    import polars as pl

    columns = leaves(schema)
    if not columns or columns > MOST_COLUMNS or columns * lines > _MOST_CELLS:
        return None, True
    try:
        return pl.read_ndjson(block, schema=schema), True
    except _faults() as error:
        return None, not str(error).startswith("error parsing line")


def _faults() -> tuple[type[BaseException], ...]:
    import polars as pl

    return (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, RuntimeError, ValueError)


def _stand_in(number: bytes) -> Callable[[re.Match[bytes]], bytes]:
    # Only where a value stands; a minus before it stays.
    def replaced(found: re.Match[bytes]) -> bytes:
        text, start, end = found.string, found.start(), found.end()
        value = text[start - 1 : start] in _BEFORE and text[end : end + 1] in _AFTER
        return number if start and value else found[0]

    return replaced


def _bracketed(block: bytes) -> list[bytes]:
    # The lines that can be an object: they begin and end with its braces.
    text = block.replace(b"\0", b"") if b"\0" in block else block
    lines = (line.strip() for line in text.split(b"\n"))
    return [line for line in lines if (line[:1] == b"{" and line[-1:] == b"}") or line[:1] == b"\x1b"]


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(without_noise(line.decode("utf-8", "replace"))), dict)
    except (ValueError, RecursionError):
        return False


def _unnested(frame: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

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
