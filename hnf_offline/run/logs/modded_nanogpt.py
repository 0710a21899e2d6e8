"""modded-nanogpt: `step:428/20344 train_loss:6.3756 train_time:...`, after the training script's source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from hnf_offline.run.logs.raw import RawLog, Reading
from hnf_offline.run.logs.text_rows import NUMBER, TextRows

# Source: KellerJordan/modded-nanogpt@f411b3d records/track_1_short/2024-10-20_ScaleUp1B/*.txt; in the records of 2025
# and later only val_loss is written, every 125 or 250 steps.
_ROW = re.compile(r"^step:(\d{1,15})/\d{1,15}\s+(\S.*)", re.MULTILINE)
_FIELD = re.compile(rf"(?:^|\s)([a-z_]{{1,40}}):({NUMBER})(?:ms|s)?(?=\s|$)")

_VALIDATION_ONLY = (
    "The log has no training losses; the loss is the validation loss (val_loss), written at {count} steps."
)


def recognises(path: Path, head: str) -> bool:
    """Tell the format by a row in the head.

    Returns:
        True where `read` should be tried.
    """
    return "step:" in head and any(
        "_loss:" in row[2] or "train_time:" in row[2] for row in _ROW.finditer(head)
    )


def read(path: Path) -> RawLog:
    """Read the rows.

    Returns:
        Its numeric columns; a column `loss` where the validation loss is the only one.
    """
    return begin(path).more()


def begin(path: Path) -> Reading:
    """Begin to read a log that may be appended to.

    Returns:
        What reads it.
    """
    return TextRows(path, _parse, "modded-nanogpt", _with_validation)


def _with_validation(raw: RawLog) -> RawLog:
    import polars as pl

    if "train_loss" in raw.frame.columns or "val_loss" not in raw.frame.columns:
        return raw
    count = raw.frame["val_loss"].count()
    frame = raw.frame.with_columns(pl.col("val_loss").alias("loss"))
    return RawLog(frame, raw.skipped_lines, (*raw.notes, _VALIDATION_ONLY.format(count=count)))


def _parse(line: str) -> Mapping[str, float] | None:
    found = _ROW.match(line)
    if found is None:
        return None
    fields = {name: float(value) for name, value in _FIELD.findall(found[2])}
    return {"step": float(found[1]), **fields} if fields else {}
