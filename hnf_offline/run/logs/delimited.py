"""CSV and TSV with a header line: wide, or sparse with empty cells."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

from hnf_offline.errors import InputError
from hnf_offline.run.logs.blocks import Blocks
from hnf_offline.run.logs.columns import meaning
from hnf_offline.run.logs.raw import RawLog, Reading, as_number, numeric
from hnf_offline.run.logs.rows import MOST_COLUMNS, compact, joined

if TYPE_CHECKING:
    import polars as pl

_NULLS = ["", "NA", "N/A", "null", "None"]
_SEPARATORS = ("\t", ",", ";")
#: Cells of a frame that polars makes at a time, empty ones included.
_MOST_CELLS = 16_000_000
#: Bytes of lines that may be one row because a quoted cell goes over several.
_LONGEST_ROW = 64_000_000


def recognises(path: Path, head: str) -> bool:
    """Tell delimited text by its suffix, or by a header that names a step and a loss above a line of numbers.

    Returns:
        True where `read` should be tried.
    """
    if path.suffix in {".csv", ".tsv"}:
        return True
    lines = [line for line in head[:200_000].split("\n", 4)[:4] if line.strip() and not line.startswith("#")]
    if len(lines) < 2 or len(lines[0]) > 100_000:
        return False
    separator = _separator(lines[0])
    names = _cells(lines[0], separator)
    if not {"step", "loss"} <= {meaning(name) for name in names}:
        return False
    cells = [cell.strip() for cell in _cells(lines[1], separator)]
    numbers = sum(as_number(cell) is not None for cell in cells)
    return (
        len(cells) == len(names)
        and numbers > 0
        and all(as_number(cell) is not None or not cell for cell in cells)
    )


def read(path: Path) -> RawLog:
    """Read delimited text; a line whose every number is unreadable counts as skipped.

    Returns:
        Its numeric columns.
    """
    return begin(path).more()


def begin(path: Path) -> Reading:
    """Begin to read delimited text that may be appended to.

    Lightning's CSVLogger writes metrics.csv anew where a metric with a new name comes: the header differs then, so
    it is read anew too.

    Returns:
        What reads it.
    """
    return _Delimited(path)


class _Delimited:
    def __init__(self, path: Path) -> None:
        self._blocks = Blocks(path)
        self._table: _Table | None = None
        self._frames: list[pl.DataFrame] = []
        self._rest = b""  # a quoted cell that goes on in the next block

    def more(self) -> RawLog:
        for block in self._blocks:
            text = self._rest + block
            if b'"' in text and text.count(b'"') % 2 and len(text) < _LONGEST_ROW:
                self._rest = text
                continue
            self._rest = b""
            if self._table is None:
                self._table, text = _begin(text)
            if self._table is not None:
                self._frames = compact([*self._frames, *self._table.frames(text)])
        table, frames = self._table, self._frames
        if self._rest:
            # What is not complete is read as it stands; whether it goes on is seen when more was written.
            table, rest = _begin(self._rest) if table is None else (copy(table), self._rest)
            frames = frames if table is None else [*frames, *table.frames(rest)]
        if table is None:
            raise InputError(
                "is empty", path=self._blocks.path, remedy="name the log file that training wrote"
            )
        frame, notes = joined(frames)
        return RawLog(
            frame, table.skipped + self._blocks.overlong, (*self._blocks.notes(), *notes, *table.notes)
        )

    def places(self) -> dict[Path, int]:
        return self._blocks.places()


class _Table:
    """The rows below one header."""

    def __init__(self, header: str) -> None:
        self.separator = _separator(header)
        cells = _cells(header, self.separator)
        self.notes: tuple[str, ...] = ()
        if len(cells) > MOST_COLUMNS:
            self.notes = (f"The table has {len(cells):,} columns; the first {MOST_COLUMNS:,} were read.",)
        self.names = _unique(cells[:MOST_COLUMNS])
        self.skipped = 0
        self._header = header.strip().encode("utf-8", "replace")
        self._texts: set[str] = set()

    def frames(self, text: bytes) -> Iterator[pl.DataFrame]:
        """Read whole lines.

        Yields:
            Frames of f64 columns, in the order of the lines.
        """
        text = self._without_headers(text)
        if text and not text.endswith(b"\n"):
            text = self._without_cut_line(text)
        most = max(_MOST_CELLS // len(self.names), 1)
        if len(text) <= most or text.count(b"\n") < most:
            parts = [text]
        else:
            whole = text.split(b"\n")
            parts = [b"\n".join(whole[start : start + most]) for start in range(0, len(whole), most)]
        for part in parts:
            if part.strip():
                yield self._frame(part)

    def _without_headers(self, text: bytes) -> bytes:
        # A run that was started again wrote its header again.
        if self._header not in text:
            return text
        return b"\n".join(line for line in text.split(b"\n") if line.strip() != self._header)

    def _without_cut_line(self, text: bytes) -> bytes:
        start = text.rfind(b"\n") + 1
        if text[start:].count(self.separator.encode()) >= len(self.names) - 1:
            return text
        self.skipped += 1
        return text[:start]

    def _frame(self, text: bytes) -> pl.DataFrame:
        import polars as pl

        schema: dict[str, pl.DataType] = {
            name: pl.String() if name in self._texts else pl.Float64() for name in self.names
        }
        try:
            frame = self._read(text, schema)
        except pl.exceptions.PolarsError:
            frame = self._as_text(text)
        numbers = self._numbers(frame)
        if not numbers.width:
            self.skipped += _filled(frame)
            return numbers
        if any(not column.null_count() for column in numbers.iter_columns()):
            return numbers
        readable = numbers.select(pl.any_horizontal(pl.all().is_not_null())).to_series()
        blank = frame.select(pl.all_horizontal(pl.all().is_null())).to_series()
        self.skipped += int((~readable & ~blank).sum())
        return numbers.filter(readable)

    def _as_text(self, text: bytes) -> pl.DataFrame:
        # A column with one stray word must not lose its numbers.
        import polars as pl

        schema: dict[str, pl.DataType] = {name: pl.String() for name in self.names}
        try:
            frame = self._read(text, schema)
        except pl.exceptions.PolarsError:
            try:
                frame = self._read(text.replace(b"\0", b""), schema, quote=None)
            except pl.exceptions.PolarsError:
                self.skipped += text.count(b"\n") + 1
                return pl.DataFrame()
        for column in frame.iter_columns():
            if column.dtype == pl.String and _has_words(column):
                self._texts.add(column.name)
        return frame

    def _read(self, text: bytes, schema: dict[str, pl.DataType], quote: str | None = '"') -> pl.DataFrame:
        import polars as pl

        return pl.read_csv(
            text,
            has_header=False,
            separator=self.separator,
            schema=schema,
            quote_char=quote,
            null_values=_NULLS,
            truncate_ragged_lines=True,
            missing_columns="insert",
            extra_columns="ignore",
            encoding="utf8-lossy",
        )

    def _numbers(self, frame: pl.DataFrame) -> pl.DataFrame:
        import polars as pl

        if self.separator == ";":
            # Where cells are separated so, a comma may be the decimal point.
            decimal = pl.col(pl.String).str.replace(r"^\s*([-+]?\d*),(\d+)", "$1.$2")
            frame = frame.with_columns(decimal)
        return numeric(frame)


def _begin(text: bytes) -> tuple[_Table | None, bytes]:
    # The header and what is below it; lines of remarks above are passed over.
    position = 0
    while position < len(text):
        end = text.find(b"\n", position)
        end = len(text) if end < 0 else end
        line = text[position:end].decode("utf-8", "replace").strip()
        position = end + 1
        if line.startswith("#"):
            line = line.lstrip("# ")
            if not any(separator in line for separator in _SEPARATORS) or "step" not in line.lower():
                continue
        if line:
            return _Table(line), text[position:]
    return None, b""


def _separator(header: str) -> str:
    return max(_SEPARATORS, key=header.count)


def _cells(line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        return line.split(separator)


def _unique(names: list[str]) -> list[str]:
    found: dict[str, None] = {}
    for position, name in enumerate(names):
        plain = name.strip()[:300] or f"column {position + 1}"
        found[plain if plain not in found else f"{plain} ({position + 1})"] = None
    return list(found) if len(found) == len(names) else [f"column {n + 1}" for n in range(len(names))]


def _filled(frame: pl.DataFrame) -> int:
    import polars as pl

    return int((~frame.select(pl.all_horizontal(pl.all().is_null())).to_series()).sum()) if frame.width else 0


def _has_words(column: pl.Series) -> bool:
    import polars as pl

    cells = column.drop_nulls()
    return bool(cells.str.strip_chars().cast(pl.Float64, strict=False).is_null().any())
