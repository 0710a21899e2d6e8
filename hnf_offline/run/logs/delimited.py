"""CSV and TSV with a header line: wide, or sparse with empty cells."""

from __future__ import annotations

from pathlib import Path

from hnf_offline.errors import InputError
from hnf_offline.run.logs.raw import RawLog, numeric

_NULLS = ["", "NA", "N/A", "null", "None"]


def recognises(path: Path, head: str) -> bool:
    """Tell delimited text by its suffix.

    Returns:
        True where `read` should be tried.
    """
    return path.suffix in {".csv", ".tsv"}


def read(path: Path) -> RawLog:
    """Read delimited text; a line whose every number is unreadable counts as skipped.

    Returns:
        Its numeric columns.

    Raises:
        InputError: when the file is empty or not text.
    """
    import polars as pl

    try:
        # As text first: a column with one "nan" or one stray word must not lose its numbers.
        frame = pl.read_csv(
            path,
            separator=_separator(path),
            infer_schema=False,
            null_values=_NULLS,
            truncate_ragged_lines=True,
            encoding="utf8-lossy",
        )
    except pl.exceptions.NoDataError as error:
        raise InputError("is empty", path=path, remedy="name the log file that training wrote") from error
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"is not delimited text ({str(error).splitlines()[0]})", path=path) from error
    numbers = numeric(frame)
    if not numbers.width:
        return RawLog(numbers, frame.height)
    readable = numbers.select(pl.any_horizontal(pl.all().is_not_null())).to_series()
    blank = frame.select(pl.all_horizontal(pl.all().is_null())).to_series()
    return RawLog(numbers.filter(readable), int((~readable & ~blank).sum()))


def _separator(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        header = file.readline(1_000_000)
    return max(("\t", ",", ";"), key=header.count)
