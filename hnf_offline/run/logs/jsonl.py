"""JSON lines: one object a line, nested keys flattened with "/"."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from hnf_offline.run.logs.blocks import Blocks
from hnf_offline.run.logs.json_blocks import JsonReader
from hnf_offline.run.logs.raw import RawLog, Reading
from hnf_offline.run.logs.rows import compact, joined

if TYPE_CHECKING:
    import polars as pl

_FIRST_LINES = 40


def recognises(path: Path, head: str) -> bool:
    """Tell JSON lines by the suffix, or by first lines of which most are whole objects.

    Returns:
        True where `read` should be tried.
    """
    if path.suffix in {".jsonl", ".ndjson"}:
        return True
    if path.name == "trainer_state.json" or "{" not in head[:10_000]:
        return False
    lines = [line.strip() for line in head.split("\n", _FIRST_LINES)[:_FIRST_LINES]]
    lines = [line for line in lines if line]
    whole = sum(line.startswith('{"') and line.endswith("}") for line in lines)
    if len(lines) == 1:
        return bool(whole) and '"log_history"' not in head
    # The first line may be longer than the head, and the last may be cut by it.
    return whole > 0.5 * len(lines) and _is_object(next(line for line in lines if line.endswith("}")))


def read(path: Path) -> RawLog:
    """Read JSON lines: a block at a time where it is strict JSON, line by line where it is not.

    Bare NaN and Infinity, numbers in quotes and nulls are read; other lines are counted as skipped.
    A first line that only describes the run (`{"_meta": ...}`) is neither a row nor a skipped line.

    Returns:
        Its numeric columns.
    """
    return begin(path).more()


def begin(path: Path) -> Reading:
    """Begin to read JSON lines that may be appended to.

    Returns:
        What reads them.
    """
    return _JsonLines(path)


class _JsonLines:
    def __init__(self, path: Path) -> None:
        self._blocks = Blocks(path)
        self._reader = JsonReader()
        self._frames: list[pl.DataFrame] = []

    def more(self) -> RawLog:
        for block in self._blocks:
            self._frames = compact([*self._frames, *self._reader.frames(block)])
        frame, notes = joined(self._frames)
        return RawLog(
            _without_empty_rows(frame),
            self._reader.skipped + self._blocks.overlong,
            (*self._blocks.notes(), *self._reader.notes(), *notes),
        )

    def places(self) -> dict[Path, int]:
        return self._blocks.places()


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _without_empty_rows(frame: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    if not frame.width or any(not column.null_count() for column in frame.iter_columns()):
        return frame
    return frame.filter(pl.any_horizontal(pl.all().is_not_null()))
