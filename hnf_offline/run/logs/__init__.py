"""Training logs: one file a format, one line in `LOG_FORMATS`; many files and restarts become one `Log`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hnf_offline.errors import InputError
from hnf_offline.run.logs import (
    build_nanogpt,
    console_rows,
    delimited,
    fairseq,
    jsonl,
    key_value,
    llm_c,
    megatron,
    mlflow,
    modded_nanogpt,
    nanogpt,
    tensorboard,
    trainer_state,
    wandb_folder,
)
from hnf_offline.run.logs.columns import choose_columns
from hnf_offline.run.logs.growing import memory
from hnf_offline.run.logs.lines import head
from hnf_offline.run.logs.merge import Segment, merge
from hnf_offline.run.logs.raw import LogFormat, RawLog, Reading
from hnf_offline.run.records import Log

if TYPE_CHECKING:
    import polars as pl

#: Format name -> module; the first that recognises a file reads it.
LOG_FORMATS: Mapping[str, LogFormat] = {
    "tensorboard": tensorboard,
    "wandb": wandb_folder,
    "mlflow": mlflow,
    "jsonl": jsonl,
    "trainer_state": trainer_state,
    "delimited": delimited,
    "fairseq": fairseq,
    "megatron": megatron,
    "modded_nanogpt": modded_nanogpt,
    "build_nanogpt": build_nanogpt,
    "llm_c": llm_c,
    "nanogpt": nanogpt,
    "console_rows": console_rows,
    "key_value": key_value,
}

#: Formats whose rows may follow much other text: source code, settings, warnings of other processes.
_AMONG_OTHER_TEXT = (
    "fairseq",
    "megatron",
    "modded_nanogpt",
    "build_nanogpt",
    "llm_c",
    "nanogpt",
    "console_rows",
)
#: Files that may quote a log, and are none.
_SOURCE = re.compile(r"\.(?:py|ipynb|md|rst|html?|js|c|cc|cpp|cu|h|sh|ya?ml|toml|xml|svg|tex)", re.IGNORECASE)
#: The format that is tried when no other recognises a file.
_LAST = "key_value"

_HEAD, _LONG_HEAD = 65_536, 8_000_000


def format_of(path: Path) -> str | None:
    """Find the format of a log file by its name and first characters.

    Returns:
        A key of `LOG_FORMATS`, None where no format recognises it.
    """
    known = memory()
    return _format_of(path) if known is None else known.format_of(path, lambda: _format_of(path))


def _format_of(path: Path) -> str | None:
    if path.is_dir():
        return next((name for name, one in LOG_FORMATS.items() if one.recognises(path, "")), None)
    # A pipe would be waited for.
    start = head(path, _HEAD) if path.is_file() else ""
    if not start:
        return None
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if _SOURCE.fullmatch(plain.suffix):
        return None
    for name, one in LOG_FORMATS.items():
        if name != _LAST and one.recognises(plain, start):
            return name
    if len(start) >= _HEAD - _HEAD // 8:  # control characters were taken out of it
        start = head(path, _LONG_HEAD)
        for name in _AMONG_OTHER_TEXT:
            if LOG_FORMATS[name].recognises(plain, start):
                return name
    return _LAST if LOG_FORMATS[_LAST].recognises(plain, start) else None


def read_log(path: Path | str | Sequence[Path], columns: Mapping[str, str] | None = None) -> Log:
    """Read a training log from one file or the several files of one run.

    Args:
        path: the file, or the files in any order.
        columns: our column name -> name in the file, where the names do not tell.

    Returns:
        One row a step.

    Raises:
        InputError: when a file has no known format, no step or loss column, or no row.
    """
    files = [Path(path)] if isinstance(path, Path | str) else list(path)
    if not files:
        raise InputError("no log file was named", remedy="name at least one")
    columns = columns or {}
    read = [_read(file, columns) for file in files]
    known = memory()
    if known is None:
        return _merged(files, read, columns)
    key = ("merged", *files, *sorted(columns.items()))
    return known.made(key, [raw for _, raw in read], lambda: _merged(files, read, columns))


def _merged(files: Sequence[Path], read: Sequence[tuple[str, RawLog]], columns: Mapping[str, str]) -> Log:
    segments: list[Segment] = []
    skipped = 0
    used: dict[str, str] = {}
    notes: dict[str, None] = {}
    for file, (_, raw) in zip(files, read, strict=True):
        notes |= dict.fromkeys(raw.notes)
        chosen = choose_columns(raw.frame.columns, _counts(raw.frame), columns, file)
        rows, unusable = _renamed(raw.frame, chosen)
        skipped += raw.skipped_lines + unusable
        used |= chosen
        if rows["loss"].null_count() == rows.height:
            raise InputError(f"has no row with a step and a loss ({chosen['loss']})", path=file)
        segments.append(Segment(file, rows))
    merged = merge(segments)
    return Log(
        _ordered(merged.rows),
        merged.files,
        merged.duplicates,
        skipped,
        merged.restarts,
        used,
        formats=tuple(dict.fromkeys(name for name, _ in read)),
        segments=merged.segments,
        disagreeing=merged.disagreeing,
        notes=tuple(notes),
    )


def _read(file: Path, columns: Mapping[str, str]) -> tuple[str, RawLog]:
    if not file.exists():
        raise InputError("is not there", path=file, remedy="check the spelling")
    if not file.is_file() and not file.is_dir():
        raise InputError("is neither a file nor a folder", path=file, remedy="save what it gives to a file")
    known = memory()
    if known is not None:
        return known.read(
            file,
            columns,
            lambda: _known_format(file, columns),
            lambda name: _begun(name, file, columns),
            _LONG_HEAD,
        )
    name = _known_format(file, columns)
    begun = _begun(name, file, columns)
    return name, begun if isinstance(begun, RawLog) else begun.more()


def _known_format(file: Path, columns: Mapping[str, str]) -> str:
    name = format_of(file)
    if name is not None:
        return name
    if file.is_dir():
        raise InputError("is a folder without a log of a known format", path=file, remedy="name the log file")
    if columns:
        return _LAST
    raise _unknown(file)


def _unknown(file: Path) -> InputError:
    return InputError(
        "is no log of a known format",
        path=file,
        remedy=f"known are {', '.join(LOG_FORMATS)}; a text log needs a step and a loss in each row",
    )


def _begun(name: str, file: Path, columns: Mapping[str, str]) -> Reading | RawLog:
    if name == _LAST and columns and format_of(file) is None:
        try:
            return key_value.read_named(file, columns)
        except InputError as error:
            raise _unknown(file) from error  # which says more
    begin: Callable[[Path], Reading] | None = getattr(LOG_FORMATS[name], "begin", None)
    return LOG_FORMATS[name].read(file) if begin is None else begin(file)


def _counts(frame: pl.DataFrame) -> dict[str, int]:
    return {column.name: len(column) - column.null_count() for column in frame.iter_columns()}


def _renamed(frame: pl.DataFrame, chosen: Mapping[str, str]) -> tuple[pl.DataFrame, int]:
    # Our names in place of the file's, rows without a whole step dropped and counted.
    import polars as pl

    taken = set(chosen.values())
    step = pl.col(chosen["step"])
    usable = step.is_not_null() & step.is_finite() & (step == step.round()) & (step.abs() < 2**53)
    all_usable = bool(frame.select(usable.all() & step.is_not_null().all()).item()) if frame.height else True
    kept = frame if all_usable else frame.filter(usable)
    others = [pl.col(name) for name in frame.columns if name not in taken and name not in chosen]
    ours = [pl.col(column).alias(name) for name, column in chosen.items() if name != "step"]
    rows = kept.select(step.cast(pl.Int64).alias("step"), *ours, *others)
    if all_usable:
        return rows, 0
    # A row with neither step nor loss (a summary, say) is no training row; one with a loss was lost.
    lost = frame.filter(
        ~usable.fill_null(value=False) & (step.is_not_null() | pl.col(chosen["loss"]).is_not_null())
    )
    return rows, lost.height


def _ordered(rows: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    ours = ["loss", "grad_norm", "learning_rate"]
    present = [pl.col(n) if n in rows.columns else pl.lit(None, dtype=pl.Float64).alias(n) for n in ours]
    others = [pl.col(name) for name in rows.columns if name not in {"step", *ours}]
    return rows.select("step", *present, *others)
