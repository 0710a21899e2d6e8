"""Weights & Biases: the folder of a run (`run-<id>.wandb`), online or offline; exports are CSV or JSON lines.

The few fields of its records that matter here are read as they stand, so the package need not be there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from hnf_offline.errors import InputError
from hnf_offline.run.logs.raw import RawLog, as_number, flatten
from hnf_offline.run.logs.scalars import MOST_NAMES, Cells, listed
from hnf_offline.run.logs.walk import Folder, walk
from hnf_offline.run.logs.wandb_records import WandbRecords
from hnf_offline.run.logs.wire import fields
from hnf_offline.run.paths import inside

#: Fields of the messages Record, HistoryRecord and HistoryItem.
#: Source: wandb/wandb@3949269 wandb/proto/wandb_internal.proto.
_HISTORY = 2
_ITEM = 1
_KEY, _NESTED_KEY, _VALUE = 1, 2, 16

#: How the field of the value begins: its number and that it holds bytes.
_VALUE_FIELD = b"\x82\x01"

_LONGEST_NUMBER, _LONGEST_OBJECT = 64, 100_000
_DEEPEST = 2
_FOLDER = re.compile(r"(?:offline-)?run-[0-9_]+-(?P<id>.+)")


def recognises(path: Path, head: str) -> bool:
    """Tell a `.wandb` file by name or beginning; a folder by such a file in it or in the run folders below.

    Returns:
        True where `read` should be tried.
    """
    if path.is_dir():
        return bool(run_folders(path, _DEEPEST))
    return path.suffix == ".wandb" or head.startswith(":W&B")


def run_folders(path: Path, deepest: int) -> list[Path]:
    """Find the folders below that W&B made for a run or a resumption of one, in the order of their times.

    Returns:
        The folders.
    """
    return sorted(folder.path for folder in walk(path, deepest) if is_run(folder))


def is_run(folder: Folder) -> bool:
    """Tell the folder of a run by its `.wandb` file, or by its name and what it holds.

    Returns:
        True for one run, or one resumption of it.
    """
    return any(file.suffix == ".wandb" for file in folder.files) or (
        "files" in folder.folders and _FOLDER.fullmatch(folder.path.name) is not None
    )


def read(path: Path) -> RawLog:
    """Read the history of a run: one row a call of `wandb.log`, with W&B's own columns `_step` and `_timestamp`.

    Several folders of one run id are one run that was resumed. Where a folder has no readable history, what the run
    printed (`files/output.log`) is read.

    Returns:
        Its numeric columns; nested keys are joined with "/".

    Raises:
        InputError: when nothing can be read, or the folder holds several runs.
    """
    if not path.is_dir():
        return _history([path])
    folders = [path.parent if path.name == "files" else path, path]
    found = next((runs for folder in folders if (runs := run_folders(folder, _DEEPEST))), [])
    if not found:
        raise InputError("holds no W&B run", path=path)
    if len({_identity(folder) for folder in found}) > 1:
        names = [folder.name for folder in found]
        raise InputError(
            f"holds {len(names)} W&B runs: {listed(names)}",
            path=path,
            remedy=f"name one of them, such as {found[0]}",
        )
    files = [file for folder in found for one in walk(folder, 0) for file in one.files]
    try:
        return _history([file for file in files if file.suffix == ".wandb"])
    except InputError as error:
        printed = _printed(found)
        if printed is None:
            raise
        note = f"{(error.path or path).name} {error.reason}, so what the run printed was read instead."
        return RawLog(printed.frame, printed.skipped_lines, (*printed.notes, note))


def _identity(folder: Path) -> str:
    named = _FOLDER.fullmatch(folder.name)
    return named["id"] if named else folder.name


def _printed(folders: list[Path]) -> RawLog | None:
    # Only the last folder's: earlier ones are of earlier stretches, and text formats differ.
    from hnf_offline.run.logs import LOG_FORMATS, format_of

    for folder in reversed(folders):
        for name in ("wandb-history.jsonl", "output.log"):
            try:
                file = inside(folder, f"files/{name}", named_by=folder)
            except InputError:
                continue
            known = format_of(file) if file.is_file() else None
            if known is not None:
                return LOG_FORMATS[known].read(file)
    return None


def _history(files: list[Path]) -> RawLog:
    cells = Cells()
    names: dict[bytes, str] = {}
    damaged = row = 0
    for file in files:
        records = WandbRecords(file)
        for record in records:
            try:
                for name, value in _numbers(record, names):
                    cells.add(name, row, value)
            except ValueError:
                damaged += 1
            row += 1
        damaged += records.damaged
    if not len(cells):
        where = files[0] if files else None
        raise InputError("holds no history", path=where, remedy="name a run that called wandb.log")
    frame, notes = cells.table()
    return RawLog(frame, damaged, notes)


def _numbers(record: bytes, names: dict[bytes, str]) -> Iterator[tuple[str, float]]:
    # The numbers of a history record; nothing for records of another kind. `names` are those that came already.
    for number, history in fields(record):
        if number != _HISTORY:
            continue
        for field, item in fields(history):
            if field != _ITEM:
                continue
            # Keys come before the value and are the same in every row; they are read once.
            keys, _, value = item.partition(_VALUE_FIELD)
            name = names.get(keys)
            if name is None or not value or value[0] != len(value) - 1 or value[0] > 127:
                name, text = _item(item)
                if len(names) < MOST_NAMES and name and len(keys) < 1_000 and _is_whole(keys):
                    names[keys] = name
            else:
                text = value[1:]
            if name:
                yield from _values(name, text)


def _item(item: bytes) -> tuple[str, bytes]:
    keys = []
    text = b""
    for number, content in fields(item):
        if number in {_KEY, _NESTED_KEY}:
            keys.append(content.decode("utf-8", "replace"))
        elif number == _VALUE:
            text = content
    return "/".join(keys), text


def _is_whole(keys: bytes) -> bool:
    # Whether these are fields up to the last, so that what follows them is the next.
    try:
        return all(number in {_KEY, _NESTED_KEY} for number, _ in fields(keys))
    except ValueError:
        return False


def _values(name: str, text: bytes) -> Iterator[tuple[str, float]]:
    # The number that a JSON text is, or those in an object.
    if len(text) < _LONGEST_NUMBER:
        try:
            yield name, float(text)
            return
        except ValueError:
            pass
    if text[:1] == b"{" and len(text) <= _LONGEST_OBJECT:
        try:
            nested = json.loads(text)
        except (ValueError, RecursionError):
            return
        # Histograms, pictures and tables say what they are.
        if isinstance(nested, dict) and "_type" not in nested:
            for key, inner in flatten(nested, f"{name}/").items():
                number = as_number(inner)
                if number is not None:
                    yield key, number
    elif text[:1] == b'"' and len(text) < _LONGEST_NUMBER:
        number = as_number(text.decode("utf-8", "replace").strip('"'))
        if number is not None:
            yield name, number
