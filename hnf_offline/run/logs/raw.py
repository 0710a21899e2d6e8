"""What every log format gives: its numeric columns in the order they were written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import polars as pl


#: Characters of a number; what is longer is none.
LONGEST_NUMBER = 64


@dataclass(frozen=True, slots=True)
class RawLog:
    """One log file as read.

    Attributes:
        frame: numeric columns (f64) under the file's own names, rows in file order.
        skipped_lines: lines that could not be read.
        notes: what is worth telling beside the rows, one sentence each.
    """

    frame: pl.DataFrame
    skipped_lines: int = 0
    notes: tuple[str, ...] = ()


class LogFormat(Protocol):
    """One log format, as a module."""

    def recognises(self, path: Path, head: str) -> bool:
        """Tell by name and first characters whether a file or folder has this format.

        Args:
            path: the file, without the ".gz" of a compressed one; or a folder (then `head` is "").
            head: its first characters, uncompressed; undecodable bytes are U+FFFD.

        Returns:
            True where `read` should be tried.
        """
        ...

    def read(self, path: Path) -> RawLog:
        """Read the file in bounded memory (`run.logs.lines` for text); one bad line is skipped and counted.

        Returns:
            Its numeric columns; raises InputError where it is not of this format after all.
        """
        ...


class Reading(Protocol):
    """A log that is read on as it grows.

    A format whose files are only ever appended to has a function `begin(path) -> Reading`; its `read` is then
    `begin(path).more()`. Of the others every look reads the whole file, where it changed (`run.logs.growing`).
    """

    def more(self) -> RawLog:
        """Read what was appended since the last call.

        Returns:
            All numeric columns so far, as `LogFormat.read` gives them; raises what that raises, and can be asked again.
        """
        ...

    def places(self) -> Mapping[Path, int]:
        """Say how far each file was read.

        Returns:
            File -> bytes, which have to be what they were for reading to go on there; nothing where it cannot.
        """
        ...


def flatten(row: Mapping[str, Any], prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """Flatten nested keys with "/".

    Returns:
        Key -> value without mappings; nesting beyond eight levels is dropped.
    """
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            if depth < 8:
                flat.update(flatten(value, f"{prefix}{key}/", depth + 1))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def as_number(value: Any) -> float | None:
    """Read a number from a number or its text; NaN and infinity are numbers.

    Returns:
        The number, None for anything else.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float | str):
        if isinstance(value, str) and (len(value) > LONGEST_NUMBER or "_" in value):
            return None
        try:
            return float(value)
        except (ValueError, OverflowError):
            return None
    return None


def numeric(frame: pl.DataFrame) -> pl.DataFrame:
    """Keep what is a number: numeric columns, and text columns that hold numbers.

    Returns:
        The same rows with f64 columns only; columns without any number are dropped.
    """
    import polars as pl

    columns = []
    for column in frame.iter_columns():
        if column.dtype == pl.String:
            number = column.str.strip_chars().cast(pl.Float64, strict=False)
        elif column.dtype.is_numeric():
            number = column.cast(pl.Float64)
        else:
            continue
        if number.null_count() < len(number):
            columns.append(number)
    return pl.DataFrame(columns)
